//! The command line reference, generated from the clap definitions of shell/cli.
//!
//! Owns: where the generated page lies.
//! Does not know: any command; an example of the cli crate prints the page.
//! Invariant: `--check` fails when the page is not what the definitions say.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::{Mode, cargo, settle};

pub(crate) fn run(root: &Path, mode: Mode) -> Result<()> {
    let output = Command::new(cargo())
        .args(["run", "--quiet", "--package", "cli", "--example", "reference"])
        .current_dir(root)
        .output()
        .context("cannot start cargo")?;
    if !output.status.success() {
        bail!(
            "the reference cannot be generated: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    let page = String::from_utf8(output.stdout).context("the reference is not UTF-8")?;
    settle(&root.join("docs/reference/cli.md"), &page, mode)
}
