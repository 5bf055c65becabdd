//! Puts a machine together of what is open, in an order that gets to the guest's
//! first instruction soon: while another process finds out what kind of KVM this
//! is, a thread reads the kernel.

use std::panic::resume_unwind;
use std::sync::{Arc, Mutex, OnceLock};
use std::thread;
use std::time::Instant;

use kvm_bindings::{
    KVM_MAX_CPUID_ENTRIES, KVM_PIT_SPEAKER_DUMMY, kvm_pit_config, kvm_userspace_memory_region,
};
use kvm_ioctls::{IoEventAddress, Kvm, VmFd};
use thiserror::Error;
use vm_memory::{GuestMemoryBackend, GuestMemoryError, GuestMemoryRegion};
use vmm_sys_util::errno;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::disks::{self, DiskError};
use super::governor::Governor;
use super::keeper::{self, DiskPart, KeepError, Parts, SharedTransport, VsockPart};
use super::open::Opened;
use super::reset::{BootFiles, Booted, FillError, ResetPlan};
use super::restore::{self, RestoreError};
use crate::boot::LoadedKernel;
use crate::boot::layout::{KVM_TSS, MMIO_SIZE, MmioSlot};
use crate::config::VmConfig;
use crate::console::{RingError, Watch};
use crate::control::server::{ControlListener, ServerError};
use crate::devices::block::{Block, BlockError, DiskThread};
use crate::devices::bus::{Bus, Overlap};
use crate::devices::ports::Ports;
use crate::devices::serial::{self, SerialPort};
use crate::devices::virtio::mmio::QUEUE_NOTIFY_OFFSET;
use crate::devices::virtio::{MmioTransport, VirtioDevice};
use crate::devices::vsock::{VsockError, VsockEventHandler, VsockHandle};
use crate::exit::{ExitReason, KvmKind};
use crate::fail_point::{self, Step};
use crate::jail::JailError;
use crate::kvm::{self, KvmError};
use crate::limits::LimitError;
use crate::memory::{self, GuestMemory, MemoryError};
use crate::repair::counters::RepairCounters;
use crate::repair::xstate::Layout;
use crate::repair::{self, Repair, RepairError};
use crate::snapshot;
use crate::snapshot::state::MachineState;
use crate::vcpu::board::{Ending, Halts};
use crate::vcpu::counters::ExitCounters;
use crate::vcpu::gate::Gate;
use crate::vcpu::setup::{self, SetupError};
use crate::vcpu::state::{MsrList, VcpuState, VcpuStateError};
use crate::vcpu::{Board, Vcpu};

/// What the threads that help to assemble may use as their stacks.
const HELPER_STACK: usize = 128 * 1024;

/// Why a machine cannot be put together. Nothing of it has run yet.
#[derive(Debug, Error)]
pub enum AssembleError {
    /// KVM cannot be used.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// What kind of KVM it is could not be found out.
    #[error("cannot find out how this KVM runs guests: {0}")]
    Detect(String),
    /// The guest's memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// What the guest boots from.
    #[error(transparent)]
    Fill(#[from] FillError),
    /// The guest's memory is not where it should be.
    #[error(transparent)]
    Place(#[from] GuestMemoryError),
    /// The machine's chips.
    #[error("the state of the interrupt controllers cannot be taken")]
    Chips(#[source] KeepError),
    /// A disk image.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// A block device.
    #[error(transparent)]
    Block(#[from] BlockError),
    /// The vsock device.
    #[error(transparent)]
    Vsock(#[from] VsockError),
    /// The console ring.
    #[error(transparent)]
    Console(#[from] RingError),
    /// The control socket.
    #[error(transparent)]
    Control(#[from] ServerError),
    /// There are more devices than interrupt lines.
    #[error("there are more devices than interrupt lines: remove a disk")]
    TooManyDevices,
    /// Two devices want the same addresses.
    #[error("the devices do not fit side by side")]
    Overlap(#[from] Overlap),
    /// KVM cannot be repaired.
    #[error("this KVM interprets guest kernels and cannot be repaired")]
    Repair(#[from] RepairError),
    /// A virtual CPU.
    #[error(transparent)]
    Setup(#[from] SetupError),
    /// The list of a virtual CPU's registers.
    #[error("KVM does not say of which registers a virtual CPU consists")]
    Msrs(#[source] VcpuStateError),
    /// What a virtual CPU is when it is new.
    #[error("the state of a new virtual CPU cannot be taken")]
    State(#[source] VcpuStateError),
    /// There is neither a kernel nor a snapshot.
    #[error("there is no kernel to boot")]
    NoKernel,
    /// The snapshot.
    #[error(transparent)]
    Restore(#[from] RestoreError),
    /// The limits.
    #[error(transparent)]
    Limits(#[from] LimitError),
    /// The jail.
    #[error(transparent)]
    Jail(#[from] JailError),
    /// A call to KVM failed.
    #[error("{call} failed")]
    Call {
        /// The call.
        call: &'static str,
        /// Why.
        #[source]
        source: errno::Error,
    },
    /// The host gave no descriptor or thread.
    #[error("the host gives the machine no {what}")]
    Host {
        /// What was asked for.
        what: &'static str,
        /// What it answered.
        #[source]
        source: std::io::Error,
    },
}

impl AssembleError {
    /// Whether it is the configuration, the files and the host that have to
    /// change, or this program.
    pub fn reason(&self) -> ExitReason {
        match self {
            AssembleError::Detect(_)
            | AssembleError::Repair(_)
            | AssembleError::Setup(_)
            | AssembleError::Msrs(_)
            | AssembleError::State(_)
            | AssembleError::Chips(_)
            | AssembleError::Overlap(_)
            | AssembleError::Jail(JailError::Step { .. })
            | AssembleError::Call { .. }
            | AssembleError::Host { .. } => ExitReason::InternalError,
            _ => ExitReason::ConfigError,
        }
    }

    fn call(call: &'static str) -> impl Fn(errno::Error) -> AssembleError {
        move |source| AssembleError::Call { call, source }
    }

    pub(super) fn host(what: &'static str) -> impl Fn(std::io::Error) -> AssembleError {
        move |source| AssembleError::Host { what, source }
    }
}

/// A machine, ready to run.
pub struct Assembled {
    /// What it was made of.
    pub config: VmConfig,
    /// When the process began.
    pub started: Instant,
    /// The process, as the host numbers it.
    pub pid: u32,
    /// Where the machine is talked to.
    pub control: Option<ControlListener>,
    /// How KVM runs its kernel.
    pub kvm: KvmKind,
    /// What its virtual CPUs share.
    pub board: Arc<Board>,
    /// What was repaired.
    pub repaired: Arc<RepairCounters>,
    /// What was seen on the console.
    pub watch: Arc<Mutex<Watch>>,
    /// The vsock device's part in the event loop.
    pub vsock: Option<VsockEventHandler>,
    /// Written when the guest calls the port at which it becomes a template.
    pub template_sign: Option<EventFd>,
    /// Written when the guest, on its way there, has booted; with what lets it go on.
    pub booted_sign: Option<(EventFd, VsockHandle)>,
    /// The virtual CPUs, not running yet.
    pub vcpus: Vec<Vcpu>,
    /// The disks' threads, not running yet.
    pub disk_threads: Vec<DiskThread>,
    /// What holds its devices to their limits.
    pub governor: Governor,
    /// The virtual machine and its devices.
    pub parts: Parts,
    /// What to start anew with, if a kernel is known.
    pub reset: Option<ResetPlan>,
}

impl std::fmt::Debug for Assembled {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Assembled")
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

/// Puts the machine together.
///
/// # Errors
///
/// When anything it needs is missing, wrong or refused.
pub fn assemble(
    config: &VmConfig,
    opened: Opened,
    started: Instant,
) -> Result<Assembled, AssembleError> {
    let Opened {
        kvm, boot: files, ..
    } = opened;
    let (origin, memory, vm) = begin(&kvm, config, files.as_ref(), opened.snapshot)?;
    let kind = opened.detection.verdict()?;
    if let Origin::Snapshot(state) = &origin {
        restore::check(config, kind, state)?;
    }
    if kind == KvmKind::Hardware {
        create_timer(&vm)?;
    } else {
        kvm::check_repairable(&kvm)?;
        repair::prepare(&vm)?;
    }

    let chips = keeper::take_chips(&vm, kind, 0).map_err(AssembleError::Chips)?;

    let sink = opened.console;
    let watch = sink.watch();
    let mut governor = Governor {
        disks: Vec::with_capacity(config.disks.len()),
        vsock: None,
        console: sink.throttle(),
    };
    let serial_irq = interrupt(&vm, serial::IRQ)?;
    let serial = match &origin {
        Origin::Kernel(_) => SerialPort::new(serial_irq, sink),
        Origin::Snapshot(state) => SerialPort::restore(&state.serial.0, serial_irq, sink)
            .map_err(|_| RestoreError::Serial)?,
    };
    let serial = Arc::new(Mutex::new(serial));
    let mut devices = Devices::new(&vm, &memory);
    let mut disks = Vec::with_capacity(config.disks.len());
    let mut disk_threads = Vec::with_capacity(config.disks.len());
    for (index, (disk, opened)) in config.disks.iter().zip(opened.disks).enumerate() {
        let image = disks::check(index, disk, opened)?;
        let size_bytes = image.size();
        let mut block = Block::new(image, &disk.serial, disk.readonly)?;
        disk_threads.extend(block.take_thread());
        governor.disks.push((disk.serial.clone(), block.handle()?));
        disks.push(DiskPart {
            serial: disk.serial.clone(),
            readonly: disk.readonly,
            size_bytes,
            transport: devices.add(Box::new(block))?,
        });
    }
    let (mut vsock_events, mut vsock_part) = (None, None);
    let (mut template_sign, mut booted_sign, mut vsock_handle) = (None, None, None);
    if let (Some(vsock), Some(device)) = (&config.vsock, opened.vsock) {
        vsock_events = Some(device.event_handler());
        governor.vsock = Some(device.handle());
        if let Some(template) = &config.template {
            let stop_at = |port, after| {
                let sign = event()?;
                let theirs = sign.try_clone();
                let theirs = theirs.map_err(AssembleError::host("event descriptor"))?;
                device.stop_at_call(port, after, theirs);
                Ok::<_, AssembleError>(sign)
            };
            if let Some(booted) = &template.booted {
                booted_sign = Some((stop_at(booted.port, None)?, device.handle()));
            }
            template_sign = Some(stop_at(template.port, template.after)?);
        }
        if let Origin::Snapshot(state) = &origin
            && let Some(former) = &state.vsock
        {
            device.handle().restored(u64::from(former.cid));
        }
        vsock_handle = Some(device.handle());
        vsock_part = Some(VsockPart {
            cid: vsock.cid,
            transport: devices.add(Box::new(device))?,
        });
    }
    governor.limit(&config.limits)?;
    let Devices { bus, slots, .. } = devices;
    if let (Origin::Kernel(kernel), Some(files)) = (&origin, &files) {
        files.write_boot_data(&memory, config, kind, kernel, &slots)?;
    }
    let booted = opened.reset_to;
    let reset = (files.is_some() || booted.is_some()).then(|| ResetPlan {
        config: config.clone(),
        files,
        booted: booted.map(|files| Booted::new(files, vsock_handle)),
        devices: slots,
        chips,
    });

    let board = Arc::new(Board {
        memory: Arc::clone(&memory),
        ports: Ports::new(Arc::clone(&serial)),
        bus,
        exits: ExitCounters::default(),
        ending: Ending::new().map_err(AssembleError::host("event descriptor"))?,
        halts: Halts::new(config.vcpus),
        gate: Gate::new(config.vcpus),
        first_run: OnceLock::new(),
    });
    let repaired = Arc::new(RepairCounters::default());
    let vcpus = create_vcpus(&kvm, &vm, config, &origin, kind, &board, &repaired)?;
    let parts = Parts {
        vm,
        kvm: kind,
        memory_mib: config.memory_mib,
        memory,
        serial,
        disks,
        vsock: vsock_part,
    };
    if let Origin::Snapshot(state) = &origin {
        restore::chips(&parts.vm, state)?;
        restore::devices(&parts, state)?;
        fail_point::reached(Step::Restored);
    }
    Ok(Assembled {
        config: config.clone(),
        started,
        pid: opened.pid,
        control: opened.control,
        kvm: kind,
        board,
        repaired,
        watch,
        vsock: vsock_events,
        template_sign,
        booted_sign,
        vcpus,
        disk_threads,
        governor,
        parts,
        reset,
    })
}

/// What a machine starts from.
enum Origin {
    /// A kernel, which is in its memory.
    Kernel(LoadedKernel),
    /// A snapshot, whose memory is mapped.
    Snapshot(Box<MachineState>),
}

/// Makes the virtual machine and fills its memory.
fn begin(
    kvm: &Kvm,
    config: &VmConfig,
    files: Option<&BootFiles>,
    snapshot: Option<snapshot::Files>,
) -> Result<(Origin, GuestMemory, VmFd), AssembleError> {
    let Some(snapshot) = snapshot else {
        let files = files.ok_or(AssembleError::NoKernel)?;
        let memory = memory::create(config.memory_mib)?;
        let (kernel, vm) = load_beside(
            || files.load_kernel(&memory, config),
            || create_vm(kvm, &memory),
        )?;
        return Ok((Origin::Kernel(kernel), memory, vm));
    };
    let state = snapshot.state().map_err(RestoreError::from)?;
    let size = state.memory_mib << 20;
    let file = snapshot.memory(size).map_err(RestoreError::from)?;
    let memory = memory::map_private(file, state.memory_mib)?;
    let vm = create_vm(kvm, &memory)?;
    Ok((Origin::Snapshot(Box::new(state)), memory, vm))
}

/// Reads the kernel in one thread while `other`, which mostly waits for KVM, goes
/// on in this.
fn load_beside<T>(
    load: impl FnOnce() -> Result<LoadedKernel, FillError> + Send,
    other: impl FnOnce() -> Result<T, AssembleError>,
) -> Result<(LoadedKernel, T), AssembleError> {
    thread::scope(|scope| {
        let loading = thread::Builder::new()
            .name("load".to_owned())
            .stack_size(HELPER_STACK)
            .spawn_scoped(scope, load)
            .map_err(AssembleError::host("thread"))?;
        let other = other();
        let kernel = loading
            .join()
            .unwrap_or_else(|panic| resume_unwind(panic))?;
        Ok((kernel, other?))
    })
}

fn create_vm(kvm: &Kvm, memory: &GuestMemory) -> Result<VmFd, AssembleError> {
    let vm = kvm
        .create_vm()
        .map_err(AssembleError::call("KVM_CREATE_VM"))?;
    vm.set_tss_address(KVM_TSS)
        .map_err(AssembleError::call("KVM_SET_TSS_ADDR"))?;
    vm.create_irq_chip()
        .map_err(AssembleError::call("KVM_CREATE_IRQCHIP"))?;
    for (slot, region) in memory.iter().enumerate() {
        let start = region.start_addr();
        let host = memory
            .get_host_address(start)
            .map_err(AssembleError::Place)?;
        let region = kvm_userspace_memory_region {
            slot: slot as u32,
            flags: 0,
            guest_phys_addr: start.0,
            memory_size: region.len(),
            userspace_addr: host as u64,
        };
        // SAFETY: the mapping has this size, and the board, which every virtual
        // CPU holds, keeps it mapped while the guest can run.
        unsafe { vm.set_user_memory_region(region) }
            .map_err(AssembleError::call("KVM_SET_USER_MEMORY_REGION"))?;
    }
    Ok(vm)
}

/// The interval timer, by which kernels that do not know KVM calibrate theirs.
/// Where kernels are interpreted its ticks would cost too much, and those that
/// can be run there do without.
fn create_timer(vm: &VmFd) -> Result<(), AssembleError> {
    let config = kvm_pit_config {
        flags: KVM_PIT_SPEAKER_DUMMY,
        ..kvm_pit_config::default()
    };
    vm.create_pit2(config)
        .map_err(AssembleError::call("KVM_CREATE_PIT2"))
}

fn event() -> Result<EventFd, AssembleError> {
    EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(AssembleError::host("event descriptor"))
}

/// An event that raises interrupt line `line`.
fn interrupt(vm: &VmFd, line: u32) -> Result<EventFd, AssembleError> {
    let event = event()?;
    vm.register_irqfd(&event, line)
        .map_err(AssembleError::call("KVM_IRQFD"))?;
    Ok(event)
}

/// Gives each virtio device its window and its interrupt line.
struct Devices<'a> {
    vm: &'a VmFd,
    memory: &'a GuestMemory,
    bus: Bus,
    slots: Vec<MmioSlot>,
}

impl<'a> Devices<'a> {
    fn new(vm: &'a VmFd, memory: &'a GuestMemory) -> Devices<'a> {
        Devices {
            vm,
            memory,
            bus: Bus::new(),
            slots: Vec::new(),
        }
    }

    fn add(&mut self, device: Box<dyn VirtioDevice>) -> Result<SharedTransport, AssembleError> {
        let slot = MmioSlot::nth(self.slots.len()).ok_or(AssembleError::TooManyDevices)?;
        let irq = interrupt(self.vm, slot.irq)?;
        let transport = MmioTransport::new(device, Arc::clone(self.memory), irq);
        let address = IoEventAddress::Mmio(slot.base + QUEUE_NOTIFY_OFFSET);
        for (queue, event) in (0u32..).zip(transport.queue_events()) {
            self.vm
                .register_ioevent(event, &address, queue)
                .map_err(AssembleError::call("KVM_IOEVENTFD"))?;
        }
        let transport = Arc::new(Mutex::new(transport));
        self.bus
            .insert(slot.base, MMIO_SIZE, Arc::clone(&transport) as _)?;
        self.slots.push(slot);
        Ok(transport)
    }
}

fn create_vcpus(
    kvm: &Kvm,
    vm: &VmFd,
    config: &VmConfig,
    origin: &Origin,
    kind: KvmKind,
    board: &Arc<Board>,
    repaired: &Arc<RepairCounters>,
) -> Result<Vec<Vcpu>, AssembleError> {
    let supported = kvm
        .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
        .map_err(AssembleError::call("KVM_GET_SUPPORTED_CPUID"))?;
    let layout = (kind == KvmKind::Interpreted).then(|| Arc::new(Layout::of_host()));
    let msrs = Arc::new(MsrList::of(kvm).map_err(AssembleError::Msrs)?);
    (0..config.vcpus)
        .map(|id| {
            let mut fd = vm
                .create_vcpu(u64::from(id))
                .map_err(AssembleError::call("KVM_CREATE_VCPU"))?;
            let mut repair = layout
                .as_ref()
                .map(|layout| {
                    let memory = Arc::clone(&board.memory);
                    Repair::new(&mut fd, memory, Arc::clone(repaired), Arc::clone(layout))
                })
                .transpose()?;
            let made = || VcpuState::take(&fd, &msrs, None).map(VcpuState::without_time);
            let made = match origin {
                Origin::Kernel(kernel) => {
                    setup::describe(&fd, id, &supported, config.vcpus)?;
                    let made = made().map_err(AssembleError::State)?;
                    setup::set_up(&fd, id, kernel.entry)?;
                    made
                }
                Origin::Snapshot(state) => {
                    let state = &state.vcpus[usize::from(id)];
                    restore::processor(id, &fd, &supported, state)?;
                    let made = made().map_err(AssembleError::State)?;
                    restore::vcpu(id, &fd, state, repair.as_mut())?;
                    made
                }
            };
            Ok(Vcpu::new(
                id,
                fd,
                Arc::clone(board),
                repair,
                Arc::clone(&msrs),
                made,
            ))
        })
        .collect()
}
