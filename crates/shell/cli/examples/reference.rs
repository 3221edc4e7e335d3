//! Prints the command line reference; `cargo xtask docs` writes it to its file.

fn main() {
    let build = cli::Build { version: env!("CARGO_PKG_VERSION"), commit: "" };
    print!("{}", cli::reference::markdown(&cli::command(build)));
}
