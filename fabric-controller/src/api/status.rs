//! Errors as gRPC statuses.

use tonic::{Code, Status};

use crate::{error::Error, reconcile::chain, store::StoreError};

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        let code = code(&error);
        if matches!(code, Code::Internal | Code::Unknown) {
            tracing::error!(error = %chain(&error), "a call failed");
        }
        Self::new(code, chain(&error))
    }
}

const fn code(error: &Error) -> Code {
    match error {
        Error::Invalid(_) | Error::Definition(_) => Code::InvalidArgument,
        Error::NotFound { .. } => Code::NotFound,
        Error::Precondition(_) => Code::FailedPrecondition,
        Error::Denied(_) => Code::PermissionDenied,
        Error::Aborted(_) => Code::Aborted,
        Error::Unavailable(_)
        | Error::Store(
            StoreError::Closed | StoreError::ReadOnly { .. } | StoreError::Disk { .. },
        ) => Code::Unavailable,
        Error::Exhausted(_) | Error::Store(StoreError::Full { .. }) => Code::ResourceExhausted,
        Error::Store(_) | Error::Record { .. } | Error::Io { .. } | Error::Internal(_) => {
            Code::Internal
        }
    }
}
