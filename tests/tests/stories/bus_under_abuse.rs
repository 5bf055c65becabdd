//! The VMBus between a real guest and hosts that are many, slow, silent or gone.

use std::{
    env, fs,
    io::{Read as _, Write as _},
    net::Shutdown,
    os::unix::net::{UnixListener, UnixStream},
};

use anyhow::{Context as _, Result, ensure};
use fabric_tests::{Peer, SOON, Story, eventually, fill, line, patient, story};
use serde_json::{Value, json};

pub(crate) const STORIES: &[Story] = &[
    story!(hundreds_of_connections_are_open_at_once_and_half_closed),
    story!(who_does_not_read_stops_only_their_own_connection),
    story!(a_guest_that_resets_the_device_mid_stream_comes_back),
];

/// What a VMM may hold of data to the host, in all.
const HELD_MAX: u64 = 16 << 20;

/// How many connections are open at once: `FABRIC_CONNECTIONS`, and not many where nobody
/// asks for more. The device's own tests have a thousand; here each costs 30 ms of a
/// processor where KVM interprets the guest's kernel.
const CONNECTIONS: u32 = 200;

async fn hundreds_of_connections_are_open_at_once_and_half_closed() -> Result<()> {
    const PORT: u32 = 2000;
    let count = env::var("FABRIC_CONNECTIONS").map_or(Ok(CONNECTIONS), |text| text.parse());
    let count = count.context("FABRIC_CONNECTIONS is no number")?;
    let peer = Peer::start(|_| Ok(json!({}))).await?;
    let listener = peer.listen(PORT)?;
    let mut told = peer.tell(&format!("call {PORT} {count}"))?;
    let mut streams: Vec<UnixStream> = Vec::new();
    while streams.len() < count as usize {
        streams.push(until_called(&listener).await?);
    }
    let stats = peer.stats()?;
    ensure!(
        stats["vsock"]["connections"] == u64::from(count) + 1,
        "{stats}"
    );
    // Each says its number. Every other one has said its last word then, and hears
    // the answer all the same.
    for (number, stream) in (0_u32..).zip(&mut streams) {
        patient(stream)?;
        let mut said = [0; 4];
        stream.read_exact(&mut said)?;
        ensure!(u32::from_le_bytes(said) == number, "{number}: {said:?}");
        if number % 2 == 1 {
            ensure!(stream.read(&mut said)? == 0, "{number} says more");
        }
        stream.write_all(&number.to_le_bytes())?;
    }
    let answer = line(&mut told)?;
    ensure!(answer == "ok", "{answer}");
    // The other way round, the host calls and the guest has them all at once.
    let mut told = peer.tell(&format!("listen {}", count / 2))?;
    let mut streams = Vec::new();
    for number in 0..count / 2 {
        let mut stream = peer.connect()?;
        let mut said = [0; 4];
        stream.read_exact(&mut said)?;
        ensure!(u32::from_le_bytes(said) == number, "{number}: {said:?}");
        streams.push(stream);
    }
    for (number, stream) in (0_u32..).zip(&mut streams) {
        stream.write_all(&number.to_le_bytes())?;
        stream.shutdown(Shutdown::Write)?;
    }
    let answer = line(&mut told)?;
    ensure!(answer == "ok", "{answer}");
    Ok(())
}

async fn who_does_not_read_stops_only_their_own_connection() -> Result<()> {
    const PORT: u32 = 2000;
    let peer = Peer::start(|_| Ok(json!({}))).await?;
    let listener = peer.listen(PORT)?;
    // A host that takes nothing: the guest is held up, in bounded memory.
    let before = resident_kib(&peer)?;
    let stuck: u64 = peer.ask(&format!("flood {PORT}"))?.parse()?;
    let mut deaf = until_called(&listener).await?;
    let held = held(&peer.stats()?)?;
    ensure!((1..=64 << 10).contains(&held), "{held} bytes are held");
    // And a guest that takes nothing: the host is held up.
    let mut starved = peer.tell("keep")?;
    fill(&mut starved)?;
    let more = resident_kib(&peer)?.saturating_sub(before);
    ensure!(more < 4096, "{more} KiB more than before");

    peer.until_it_answers(SOON).await?;
    // When it reads at last, everything is there.
    patient(&deaf)?;
    let mut taken = vec![0; usize::try_from(stuck)?];
    deaf.read_exact(&mut taken)?;
    ensure!(taken.iter().all(|byte| *byte == 0x5a), "other bytes came");
    Ok(())
}

async fn a_guest_that_resets_the_device_mid_stream_comes_back() -> Result<()> {
    const PORT: u32 = 2000;
    let peer = Peer::start(|_| Ok(json!({}))).await?;
    let listener = peer.listen(PORT)?;
    peer.ask(&format!("flood {PORT}"))?;
    let mut deaf = until_called(&listener).await?;
    let mut starved = peer.tell("keep")?;
    fill(&mut starved)?;
    let mut told = peer.tell("reset")?;
    for stream in [&mut deaf, &mut starved, &mut told] {
        patient(stream)?;
        // Whether it ends in order or not: it ends.
        let ended = stream.read_to_end(&mut Vec::new());
        let in_time = ended
            .as_ref()
            .err()
            .is_none_or(|error| error.kind() == std::io::ErrorKind::ConnectionReset);
        ensure!(in_time, "{ended:?}");
    }
    peer.until_it_answers(SOON).await?;
    let stats = peer.stats()?;
    ensure!(held(&stats)? == 0, "{stats}");
    Ok(())
}

/// The guest's next call.
async fn until_called(listener: &UnixListener) -> Result<UnixStream> {
    listener.set_nonblocking(true)?;
    let stream = eventually(SOON, "a call of the guest", || async {
        listener.accept().map_err(|error| error.to_string())
    });
    let (stream, _) = stream.await?;
    stream.set_nonblocking(false)?;
    Ok(stream)
}

fn held(stats: &Value) -> Result<u64> {
    let held = stats["vsock"]["held_bytes"]
        .as_u64()
        .context("held bytes")?;
    ensure!(held <= HELD_MAX, "{held} bytes are held");
    Ok(held)
}

/// What the VMM has in memory beside its guest's, in KiB.
fn resident_kib(peer: &Peer) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{}/status", peer.pid()?))?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"))
        .context("RssAnon")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}
