//! Errors of this crate in the port's words.
//!
//! Owns: naming the step that failed and telling a full disk apart.
//! Does not know: what is being done.
//! Invariant: one line, with every cause once.

use std::error::Error;
use std::io;
use std::path::Path;

use base::chain;
use ports::runtime::RuntimeError;

/// `step` failed because of `error`.
pub(crate) fn failed(step: &'static str, error: &(dyn Error + 'static)) -> RuntimeError {
    RuntimeError::Failed { step, problem: chain(error).to_string() }
}

/// As [`failed`], but a full disk is [`RuntimeError::NoSpace`] of `path`.
pub(crate) fn io_failed(
    step: &'static str,
    path: &Path,
) -> impl Fn(io::Error) -> RuntimeError + use<> {
    let path = path.to_owned();
    move |error| {
        if is_no_space(&error) {
            return RuntimeError::NoSpace { path: path.clone() };
        }
        RuntimeError::Failed { step, problem: format!("{}: {}", path.display(), chain(&error)) }
    }
}

/// A refusal that names no other error.
pub(crate) fn refused(step: &'static str, problem: impl Into<String>) -> RuntimeError {
    RuntimeError::Failed { step, problem: problem.into() }
}

pub(crate) fn invalid(field: &'static str, problem: impl Into<String>) -> RuntimeError {
    RuntimeError::Invalid { field, problem: problem.into() }
}

/// Runs blocking work; a panic in it is an error here.
pub(crate) async fn blocking<T: Send + 'static>(
    step: &'static str,
    work: impl FnOnce() -> Result<T, RuntimeError> + Send + 'static,
) -> Result<T, RuntimeError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(failed(step, &error)),
    }
}

fn is_no_space(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT))
        || error.kind() == io::ErrorKind::StorageFull
}
