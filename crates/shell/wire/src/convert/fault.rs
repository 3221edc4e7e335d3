//! The one error type, in the metadata of a gRPC status.
//!
//! Owns: the table from error codes to gRPC codes, and the metadata key.
//! Does not know: exit codes and HTTP.
//! Invariant: a fault that was sent arrives with its code, field, message and hint.

use prost::Message;
use tonic::metadata::MetadataValue;
use tonic::{Code, Status};
use types::{ErrorCode, Fault};

use crate::v1;

/// Where a status carries `shoal.v1.Error`.
pub const ERROR_KEY: &str = "shoal-error-bin";

/// The status that carries `fault`.
#[must_use]
pub fn status_of(fault: &Fault) -> Status {
    let details = v1::Error {
        code: fault.code as i32,
        field: fault.field.clone(),
        message: fault.message.clone(),
        hint: fault.hint.clone(),
    };
    let mut status = Status::new(code_of(fault.code), fault.to_string());
    let value = MetadataValue::from_bytes(&details.encode_to_vec());
    status.metadata_mut().insert_bin(ERROR_KEY, value);
    status
}

/// The fault that a status carries, or one made of its code and message.
#[must_use]
pub fn fault_of(status: &Status) -> Fault {
    let details = status.metadata().get_bin(ERROR_KEY).and_then(|value| value.to_bytes().ok());
    match details.and_then(|bytes| v1::Error::decode(bytes).ok()) {
        Some(error) => Fault {
            code: ErrorCode::ALL_CODES
                .into_iter()
                .find(|code| *code as i32 == error.code)
                .unwrap_or(ErrorCode::Internal),
            field: error.field,
            message: error.message,
            hint: error.hint,
        },
        None => Fault::new(code_from(status.code()), status.message()),
    }
}

fn code_of(code: ErrorCode) -> Code {
    match code {
        ErrorCode::Invalid => Code::InvalidArgument,
        ErrorCode::NotFound => Code::NotFound,
        ErrorCode::Conflict => Code::AlreadyExists,
        ErrorCode::OutOfDate => Code::Aborted,
        ErrorCode::FailedPrecondition | ErrorCode::NotAManager => Code::FailedPrecondition,
        ErrorCode::PermissionDenied => Code::PermissionDenied,
        ErrorCode::Unauthenticated => Code::Unauthenticated,
        ErrorCode::NoSpace => Code::ResourceExhausted,
        ErrorCode::NoQuorum | ErrorCode::Unavailable => Code::Unavailable,
        ErrorCode::TimedOut => Code::DeadlineExceeded,
        ErrorCode::Unimplemented => Code::Unimplemented,
        ErrorCode::Internal => Code::Internal,
    }
}

fn code_from(code: Code) -> ErrorCode {
    match code {
        Code::InvalidArgument | Code::OutOfRange => ErrorCode::Invalid,
        Code::NotFound => ErrorCode::NotFound,
        Code::AlreadyExists => ErrorCode::Conflict,
        Code::Aborted => ErrorCode::OutOfDate,
        Code::FailedPrecondition => ErrorCode::FailedPrecondition,
        Code::PermissionDenied => ErrorCode::PermissionDenied,
        Code::Unauthenticated => ErrorCode::Unauthenticated,
        Code::ResourceExhausted => ErrorCode::NoSpace,
        Code::Unavailable => ErrorCode::Unavailable,
        Code::DeadlineExceeded | Code::Cancelled => ErrorCode::TimedOut,
        Code::Unimplemented => ErrorCode::Unimplemented,
        Code::Ok | Code::Unknown | Code::Internal | Code::DataLoss => ErrorCode::Internal,
    }
}

/// All codes, for looking one up by its number.
trait AllCodes: Sized {
    const ALL_CODES: [Self; 14];
}

impl AllCodes for ErrorCode {
    const ALL_CODES: [Self; 14] = [
        Self::Invalid,
        Self::NotFound,
        Self::Conflict,
        Self::OutOfDate,
        Self::FailedPrecondition,
        Self::PermissionDenied,
        Self::Unauthenticated,
        Self::NotAManager,
        Self::NoQuorum,
        Self::NoSpace,
        Self::Unavailable,
        Self::TimedOut,
        Self::Unimplemented,
        Self::Internal,
    ];
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_arrives_whole() {
        for code in ErrorCode::ALL_CODES {
            let fault = Fault {
                code,
                field: "--limit-memory".into(),
                message: "zu klein".into(),
                hint: "at least 4m".into(),
            };
            assert_eq!(fault_of(&status_of(&fault)), fault);
        }
    }

    #[test]
    fn a_foreign_status_keeps_its_message() {
        let fault = fault_of(&Status::not_found("service x not found"));
        assert_eq!(
            (fault.code, fault.message.as_str()),
            (ErrorCode::NotFound, "service x not found")
        );
    }
}
