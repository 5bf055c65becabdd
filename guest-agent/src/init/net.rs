//! Brings up the loopback, over which roles are probed. The guest has no other
//! network device: all its traffic goes over the VMBus.

use std::{
    io,
    net::{Ipv4Addr, TcpListener, TcpStream},
    time::Duration,
};

use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with,
    sockopt::set_socket_linger,
};

/// `RTM_NEWLINK` (rtnetlink(7)).
const RTM_NEWLINK: u16 = 16;
/// `NLM_F_REQUEST | NLM_F_ACK` (netlink(7)).
const REQUEST_WITH_ANSWER: u16 = 1 | 4;
/// `NLMSG_ERROR` (netlink(7)): an answer, whose error is 0 when it was done.
const NLMSG_ERROR: u16 = 2;
/// `IFF_UP` (netdevice(7)).
const UP: u32 = 1;
/// The loopback is the first device of every network namespace.
const LOOPBACK: i32 = 1;

/// Length of `struct nlmsghdr` and of `struct ifinfomsg`.
const HEADER: usize = 16;
const MESSAGE: usize = 2 * HEADER;

/// Brings up the loopback; the kernel gives it 127.0.0.1 then.
pub fn loopback_up() -> io::Result<()> {
    let socket = socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        // NETLINK_ROUTE, which is 0.
        None,
    )?;
    send(&socket, &request(), SendFlags::empty())?;
    let mut answer = [0; 256];
    let (length, _) = recv(&socket, &mut answer, RecvFlags::empty())?;
    read_answer(answer.get(..length).unwrap_or_default())
}

/// Makes a connection over the loopback: what the kernel makes for its first one is there
/// when a role is probed.
pub fn try_loopback() -> io::Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let stream = TcpStream::connect(listener.local_addr()?)?;
    // Its end is a reset, so that nothing of it lingers.
    Ok(set_socket_linger(&stream, Some(Duration::ZERO))?)
}

/// Sets [`UP`] on [`LOOPBACK`].
fn request() -> [u8; MESSAGE] {
    let mut message = [0; MESSAGE];
    let mut put = |at: usize, bytes: &[u8]| message[at..at + bytes.len()].copy_from_slice(bytes);
    // struct nlmsghdr: length, type, flags, sequence, port.
    put(0, &(MESSAGE as u32).to_ne_bytes());
    put(4, &RTM_NEWLINK.to_ne_bytes());
    put(6, &REQUEST_WITH_ANSWER.to_ne_bytes());
    put(8, &1_u32.to_ne_bytes());
    // struct ifinfomsg: family, pad, type, index, flags, mask of flags to change.
    put(HEADER + 4, &LOOPBACK.to_ne_bytes());
    put(HEADER + 8, &UP.to_ne_bytes());
    put(HEADER + 12, &UP.to_ne_bytes());
    message
}

fn read_answer(answer: &[u8]) -> io::Result<()> {
    let kind = answer
        .get(4..6)
        .and_then(|bytes| bytes.try_into().ok())
        .map(u16::from_ne_bytes);
    let error = answer
        .get(HEADER..HEADER + 4)
        .and_then(|bytes| bytes.try_into().ok())
        .map(i32::from_ne_bytes);
    match (kind, error) {
        (Some(NLMSG_ERROR), Some(0)) => Ok(()),
        (Some(NLMSG_ERROR), Some(error)) => {
            Err(io::Error::from_raw_os_error(error.saturating_neg()))
        }
        _ => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "netlink answered something else",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_over_the_loopback_can_be_made_and_leaves_nothing() {
        try_loopback().unwrap();
        try_loopback().unwrap();
    }

    #[test]
    fn an_answer_is_a_success_an_error_or_nonsense() {
        let answer = |kind: u16, error: i32| {
            let mut answer = [0; 36];
            answer[4..6].copy_from_slice(&kind.to_ne_bytes());
            answer[16..20].copy_from_slice(&error.to_ne_bytes());
            answer
        };
        read_answer(&answer(NLMSG_ERROR, 0)).unwrap();
        let refused = read_answer(&answer(NLMSG_ERROR, -1)).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::PermissionDenied);
        assert!(read_answer(&answer(3, 0)).is_err());
        assert!(read_answer(&[0; 5]).is_err());
    }
}
