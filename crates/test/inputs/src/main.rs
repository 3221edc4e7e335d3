//! Writes the seeds where cargo-fuzz looks for them.
//!
//! Owns: nothing but the files. Does not know: the fuzzer. Invariant: each target has its folder.

use std::path::Path;

use anyhow::{Context as _, Result};
use inputs::{TARGETS, seeds};

fn main() -> Result<()> {
    let folder = std::env::args().nth(1).context("name the folder, such as fuzz/corpus")?;
    for target in TARGETS {
        let folder = Path::new(&folder).join(target.name);
        std::fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
        for (number, seed) in seeds(target.name).iter().enumerate() {
            std::fs::write(folder.join(format!("seed-{number}")), seed)?;
        }
    }
    Ok(())
}
