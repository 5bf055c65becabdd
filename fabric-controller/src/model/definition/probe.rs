//! The rules of the service file for probes.

use std::{ops::RangeInclusive, time::Duration};

use toml::Spanned;

use super::{Check, Probe, check::Part, raw};

/// Time between two checks.
const PERIOD: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(3600);
/// Time that a check may take.
const TIMEOUT: RangeInclusive<Duration> = Duration::from_millis(10)..=Duration::from_secs(600);
/// Results in a row.
const THRESHOLD: RangeInclusive<u32> = 1..=1000;
/// Longest path of a request.
const LONGEST_PATH: usize = 1024;

/// Checks one probe.
pub(super) fn check(raw: Option<&Spanned<raw::Probe>>, part: &mut Part<'_, '_>) -> Option<Probe> {
    let raw = raw?;
    let span = raw.span();
    let raw = raw.get_ref();
    let check = match (&raw.http, &raw.tcp, &raw.exec) {
        (Some(http), None, None) => self::http(http, part),
        (None, Some(tcp), None) => part.port("port", &tcp.port).map(Check::Tcp),
        (None, None, Some(exec)) => Some(Check::Exec(part.command("exec", exec))),
        (None, None, None) => {
            part.wrong(&span, "nothing is checked; give one of http, tcp and exec");
            None
        }
        _ => {
            part.wrong(
                &span,
                "more than one thing is checked; give one of http, tcp and exec",
            );
            None
        }
    };
    let period = part.duration(
        "period",
        raw.period.as_ref(),
        &PERIOD,
        Duration::from_secs(2),
    );
    let timeout = part.duration(
        "timeout",
        raw.timeout.as_ref(),
        &TIMEOUT,
        Duration::from_secs(1),
    );
    let mut threshold = |key, value: Option<&Spanned<i64>>, default| {
        value.map_or(Some(default), |value| part.number(key, value, &THRESHOLD))
    };
    let failure_threshold = threshold("failure_threshold", raw.failure_threshold.as_ref(), 3);
    let success_threshold = threshold("success_threshold", raw.success_threshold.as_ref(), 1);
    Some(Probe {
        check: check?,
        period,
        timeout,
        failure_threshold: failure_threshold?,
        success_threshold: success_threshold?,
    })
}

/// A path is sent in a request line: visible ASCII alone, so that nobody's line
/// break becomes a header.
fn http(raw: &raw::HttpCheck, part: &mut Part<'_, '_>) -> Option<Check> {
    let port = part.port("port", &raw.port);
    let path = raw
        .path
        .as_ref()
        .map_or("/", |path| path.get_ref().as_str());
    let valid = path.starts_with('/')
        && path.len() <= LONGEST_PATH
        && path.bytes().all(|byte| byte.is_ascii_graphic());
    if let Some(raw) = raw.path.as_ref().filter(|_| !valid) {
        part.wrong(
            &raw.span(),
            &format!(
                "path {path:?} is not a path: it begins with '/' and is visible ASCII, \
                 at most {LONGEST_PATH} bytes"
            ),
        );
    }
    Some(Check::Http {
        port: port?,
        path: path.to_owned(),
    })
}
