//! What a failed handshake means, in the words of who has to mend it.

use std::{error::Error as StdError, fmt, io};

use rustls::{AlertDescription, CertificateError, Error};

/// Why there is no connection, and what to do. The cause is in the text.
#[derive(Debug)]
pub struct Explained {
    what: String,
    source: Option<io::Error>,
}

impl fmt::Display for Explained {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

impl StdError for Explained {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_ref().map(|error| error as _)
    }
}

/// An error that says more, of the same kind.
#[must_use]
pub fn explained(error: io::Error) -> io::Error {
    let kind = error.kind();
    let tls = error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<Error>());
    let Some(what) = tls.map_or_else(|| of_io(kind), of_tls) else {
        return error;
    };
    let source = Some(error);
    io::Error::new(kind, Explained { what, source })
}

fn of_io(kind: io::ErrorKind) -> Option<String> {
    let what = match kind {
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset => {
            "the other side closed the connection while TLS was being set up: either it does not \
             speak TLS 1.3, or it has too many connections"
        }
        _ => return None,
    };
    Some(what.to_owned())
}

/// What an error of TLS means; `None` if its own words say it.
fn of_tls(error: &Error) -> Option<String> {
    Some(match error {
        Error::InvalidCertificate(reason) => of_certificate(reason)?,
        Error::AlertReceived(alert) => of_alert(*alert)?.to_owned(),
        Error::InvalidMessage(_) => {
            "the other side does not speak TLS: is it a fabric controller?".to_owned()
        }
        _ => return None,
    })
}

/// The controller's certificate, as we see it.
fn of_certificate(reason: &CertificateError) -> Option<String> {
    use CertificateError as C;
    let check_clocks = "compare the clocks of both machines (`date`)";
    Some(match reason {
        C::UnknownIssuer | C::BadSignature | C::ApplicationVerificationFailure => {
            "the controller's certificate was not made by the CA that we know (wrong CA): this is \
             another controller, or it was set up anew; get a new context or token from it"
                .to_owned()
        }
        C::ExpiredContext { time, not_after } => format!(
            "the controller's certificate has expired: it was valid until {} (seconds since 1970), \
             and this machine's clock says {}; {check_clocks}",
            not_after.as_secs(),
            time.as_secs()
        ),
        C::Expired => format!("the controller's certificate has expired; {check_clocks}"),
        C::NotValidYetContext { time, not_before } => format!(
            "the controller's certificate is not valid yet: it will be from {} (seconds since \
             1970), and this machine's clock says {}; {check_clocks}",
            not_before.as_secs(),
            time.as_secs()
        ),
        C::NotValidYet => format!("the controller's certificate is not valid yet; {check_clocks}"),
        C::NotValidForNameContext {
            expected,
            presented,
        } => format!(
            "the controller's certificate is not for {}, but for {}; use one of these, or start \
             the controller with --name {}",
            expected.to_str(),
            presented.join(", "),
            expected.to_str()
        ),
        C::NotValidForName => "the controller's certificate is for other names; start the \
                               controller with --name NAME"
            .to_owned(),
        _ => return None,
    })
}

/// Our certificate, as the controller sees it.
const fn of_alert(alert: AlertDescription) -> Option<&'static str> {
    use AlertDescription as A;
    Some(match alert {
        A::CertificateExpired => {
            "the controller says that our certificate has expired or is not valid yet: compare \
             the clocks of both machines (`date`); if it has expired, a new one is needed \
             (`fabric-controller certificate create`, or `token create` and `host-agent join`)"
        }
        A::CertificateRevoked => {
            "the controller says that our certificate was revoked; if that was a mistake, an \
             administrator can make a new one"
        }
        A::UnknownCA | A::DecryptError | A::BadCertificate | A::CertificateUnknown => {
            "the controller does not accept our certificate, which is not from its CA (wrong CA): \
             this is another controller, or it was set up anew; get a new context or token from it"
        }
        A::CertificateRequired => "the controller wants a certificate, and we have none",
        A::ProtocolVersion => "the other side does not speak TLS 1.3",
        _ => return None,
    })
}
