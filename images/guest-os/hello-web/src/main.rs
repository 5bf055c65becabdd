//! A web role for demos and measurements: says hello over HTTP.
//!
//! One process, no library: where KVM interprets guest kernels a fork
//! takes 0.3 s, so a server that forks for each request (busybox's does) is slower
//! than the probes that ask whether it lives.
//!
//! With `DIARY` in its environment, a time in milliseconds, it also says so often what
//! time it is, on its standard output: `diary 1700000000000`, in milliseconds since 1970.
//!
//! It knows nothing of the fabric but the environment that every role is given.

#![forbid(unsafe_code)]

use std::{
    env,
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    net::{Ipv4Addr, TcpListener, TcpStream},
    process::ExitCode,
    thread,
    time::{Duration, SystemTime},
};

/// Where it listens, unless the environment says otherwise in `PORT`.
const PORT: u16 = 8080;
/// How long a client may keep the others waiting.
const PATIENCE: Duration = Duration::from_secs(2);
/// Longest request, its headers included.
const REQUEST: u64 = 8 << 10;
/// Bytes of a request that are read at once. What is larger is asked of the kernel anew for
/// each request.
const BUFFER: usize = 512;

fn main() -> ExitCode {
    let port = env::var("PORT")
        .ok()
        .and_then(|port| port.parse().ok())
        .unwrap_or(PORT);
    let listener = match TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
        Ok(listener) => listener,
        Err(error) => {
            eprintln!("hello-web: cannot listen on port {port}: {error}");
            return ExitCode::FAILURE;
        }
    };
    println!("hello-web: listening on port {port}");
    if let Some(interval) = env::var("DIARY").ok().and_then(|text| text.parse().ok()) {
        thread::spawn(move || keep_diary(Duration::from_millis(interval)));
    }
    let page = page(
        &env::var("FABRIC_INSTANCE").unwrap_or_default(),
        &env::var("GREETING").unwrap_or_else(|_| "Hello".to_owned()),
    );
    for client in listener.incoming() {
        // A client that goes away harms nobody but itself.
        let _ = client.and_then(|client| answer(&client, &page));
    }
    ExitCode::SUCCESS
}

fn keep_diary(interval: Duration) {
    loop {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        println!("diary {}", now.unwrap_or_default().as_millis());
        thread::sleep(interval);
    }
}

fn page(instance: &str, greeting: &str) -> String {
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<title>hello-web</title>\n<p>{} from {}.\n</html>\n",
        escaped(greeting),
        escaped(instance)
    )
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

fn answer(mut client: &TcpStream, page: &str) -> io::Result<()> {
    client.set_read_timeout(Some(PATIENCE))?;
    client.set_write_timeout(Some(PATIENCE))?;
    let mut lines = BufReader::with_capacity(BUFFER, client.take(REQUEST)).lines();
    let Some(request) = lines.next().transpose()? else {
        // A probe that only connects.
        return Ok(());
    };
    for line in lines {
        if line?.is_empty() {
            break;
        }
    }
    client.write_all(response(&request, page).as_bytes())
}

fn response(request: &str, page: &str) -> String {
    let mut words = request.split(' ');
    let (status, body) = match (words.next(), words.next()) {
        (Some("GET"), Some("/")) => ("200 OK", page),
        (Some("HEAD"), Some("/")) => ("200 OK", ""),
        (Some("GET" | "HEAD"), Some(_)) => ("404 Not Found", "not found\n"),
        _ => ("405 Method Not Allowed", "only GET\n"),
    };
    let length = body.len();
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/html; charset=utf-8\r\n\
         Content-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_says_hello_and_nothing_else() {
        let page = page("demo-web-0", "<Hello>");
        let answer = response("GET / HTTP/1.1", &page);
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        assert!(answer.contains("&lt;Hello> from demo-web-0."), "{answer}");
        assert!(response("GET /x HTTP/1.1", &page).starts_with("HTTP/1.1 404 "));
        assert!(response("POST / HTTP/1.1", &page).starts_with("HTTP/1.1 405 "));
        assert!(response("", &page).starts_with("HTTP/1.1 405 "));
    }

    #[test]
    fn a_client_that_only_connects_does_not_hold_it_up() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        drop(TcpStream::connect(listener.local_addr().unwrap()).unwrap());
        assert!(answer(&listener.accept().unwrap().0, "").is_ok());
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        client
            .write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            .unwrap();
        answer(&listener.accept().unwrap().0, "hello").unwrap();
        let mut text = String::new();
        client.read_to_string(&mut text).unwrap();
        assert!(text.ends_with("\r\n\r\nhello"), "{text}");
    }
}
