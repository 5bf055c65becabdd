//! The header of a vsock packet (virtio 1.2, 5.10.6).
//!
//! It is copied out of guest memory once and judged afterwards; the payload
//! follows it in the same chain, cut into descriptors anyhow. (The packet type
//! of the `virtio-vsock` crate takes two descriptors at the most, and drivers
//! that send without copying use more.)

/// The length of a header in bytes.
pub const HEADER_LEN: usize = 44;
/// The most payload in one packet.
pub const MAX_PAYLOAD: usize = 64 << 10;
/// The host's address (`VMADDR_CID_HOST`).
pub const HOST_CID: u64 = 2;
/// The packet type of stream sockets, the only one here.
pub const TYPE_STREAM: u16 = 1;

/// What a packet is for (`op`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Op {
    /// Asks for a connection.
    Request = 1,
    /// Accepts it.
    Response = 2,
    /// Refuses a connection, or ends one at once.
    Rst = 3,
    /// Says that its sender will not send, or not receive, any more.
    Shutdown = 4,
    /// Carries data.
    Rw = 5,
    /// Says how much may be sent.
    CreditUpdate = 6,
    /// Asks how much may be sent.
    CreditRequest = 7,
}

impl Op {
    /// The operation with this number, if there is one.
    pub fn from_number(number: u16) -> Option<Op> {
        [
            Op::Request,
            Op::Response,
            Op::Rst,
            Op::Shutdown,
            Op::Rw,
            Op::CreditUpdate,
            Op::CreditRequest,
        ]
        .into_iter()
        .find(|op| *op as u16 == number)
    }
}

/// Which directions the sender of a [`Op::Shutdown`] gives up (`flags`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shutdown {
    /// It will receive no more.
    pub receive: bool,
    /// It will send no more.
    pub send: bool,
}

impl Shutdown {
    const RECEIVE: u32 = 1;
    const SEND: u32 = 2;

    /// Both directions.
    pub const BOTH: Shutdown = Shutdown {
        receive: true,
        send: true,
    };

    /// Reads the flags; unknown ones are ignored.
    pub fn from_flags(flags: u32) -> Shutdown {
        Shutdown {
            receive: flags & Self::RECEIVE != 0,
            send: flags & Self::SEND != 0,
        }
    }

    /// The flags that say so.
    pub fn flags(self) -> u32 {
        let receive = if self.receive { Self::RECEIVE } else { 0 };
        let send = if self.send { Self::SEND } else { 0 };
        receive | send
    }
}

/// A stream's two ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ports {
    /// The port at the host.
    pub host: u32,
    /// The port in the guest.
    pub guest: u32,
}

/// A packet's header (`struct virtio_vsock_hdr`), with that structure's names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// The sender's address.
    pub src_cid: u64,
    /// The receiver's address.
    pub dst_cid: u64,
    /// The sender's port.
    pub src_port: u32,
    /// The receiver's port.
    pub dst_port: u32,
    /// The length of the payload.
    pub len: u32,
    /// The socket type (`type`): [`TYPE_STREAM`].
    pub socket_type: u16,
    /// The number of the [`Op`].
    pub op: u16,
    /// What the operation makes of it.
    pub flags: u32,
    /// The size of the sender's receive buffer.
    pub buf_alloc: u32,
    /// How many bytes the sender has taken out of it, ever.
    pub fwd_cnt: u32,
}

impl Header {
    /// Reads a header.
    pub fn from_bytes(bytes: &[u8; HEADER_LEN]) -> Header {
        let mut fields = Fields(bytes);
        Header {
            src_cid: u64::from_le_bytes(fields.next()),
            dst_cid: u64::from_le_bytes(fields.next()),
            src_port: u32::from_le_bytes(fields.next()),
            dst_port: u32::from_le_bytes(fields.next()),
            len: u32::from_le_bytes(fields.next()),
            socket_type: u16::from_le_bytes(fields.next()),
            op: u16::from_le_bytes(fields.next()),
            flags: u32::from_le_bytes(fields.next()),
            buf_alloc: u32::from_le_bytes(fields.next()),
            fwd_cnt: u32::from_le_bytes(fields.next()),
        }
    }

    /// Writes a header.
    pub fn to_bytes(self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        let mut at = 0;
        let mut put = |field: &[u8]| {
            bytes[at..at + field.len()].copy_from_slice(field);
            at += field.len();
        };
        put(&self.src_cid.to_le_bytes());
        put(&self.dst_cid.to_le_bytes());
        put(&self.src_port.to_le_bytes());
        put(&self.dst_port.to_le_bytes());
        put(&self.len.to_le_bytes());
        put(&self.socket_type.to_le_bytes());
        put(&self.op.to_le_bytes());
        put(&self.flags.to_le_bytes());
        put(&self.buf_alloc.to_le_bytes());
        put(&self.fwd_cnt.to_le_bytes());
        bytes
    }

    /// A header from the host to the guest.
    pub fn to_guest(guest_cid: u64, ports: Ports, op: Op) -> Header {
        Header {
            src_cid: HOST_CID,
            dst_cid: guest_cid,
            src_port: ports.host,
            dst_port: ports.guest,
            socket_type: TYPE_STREAM,
            op: op as u16,
            ..Header::default()
        }
    }

    /// The two ends of the stream that a packet from the guest belongs to.
    pub fn ports_from_guest(&self) -> Ports {
        Ports {
            host: self.dst_port,
            guest: self.src_port,
        }
    }
}

/// Takes one field after another off the front of a header.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn next<const N: usize>(&mut self) -> [u8; N] {
        let mut field = [0; N];
        let (front, rest) = self.0.split_at(N);
        field.copy_from_slice(front);
        self.0 = rest;
        field
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_header_survives_its_bytes(bytes in prop::array::uniform32(any::<u8>()), tail in prop::array::uniform12(any::<u8>())) {
            let mut all = [0; HEADER_LEN];
            all[..32].copy_from_slice(&bytes);
            all[32..].copy_from_slice(&tail);
            prop_assert_eq!(Header::from_bytes(&all).to_bytes(), all);
        }
    }

    #[test]
    fn fields_are_where_the_specification_puts_them() {
        let header = Header {
            src_port: 7,
            op: Op::Rw as u16,
            fwd_cnt: 9,
            ..Header::default()
        };
        let bytes = header.to_bytes();
        assert_eq!((bytes[16], bytes[30], bytes[40]), (7, 5, 9));
    }
}
