//! The reference of all commands as one Markdown page.
//!
//! Owns: its layout. Does not know: any command; it walks the definitions.
//! Invariant: the same definitions give the same page, so it can be checked in and compared.

use std::fmt::Write;

use clap::{Arg, Command};

/// The page for `command` and everything below it.
#[must_use]
pub fn markdown(command: &Command) -> String {
    let mut page = String::from(
        "# Command line reference\n\n\
         Generated from the definitions in `crates/shell/cli` by `cargo xtask docs`; do not \
         edit.\n\n\
         Exit codes: 0 done, 1 failed, 124 `--wait-timeout` ended first, 125 the command line is \
         wrong.\n",
    );
    let mut root = command.clone();
    root.build();
    // Writing to a string does not fail.
    let _ = write_command(&mut page, &root, "shoal");
    page
}

fn write_command(page: &mut String, command: &Command, path: &str) -> std::fmt::Result {
    writeln!(page, "\n## {path}\n")?;
    if let Some(about) = command.get_about() {
        writeln!(page, "{about}.\n")?;
    }
    let usage = command.clone().render_usage().to_string();
    let usage = usage.trim_start_matches("Usage:").trim();
    writeln!(
        page,
        "```text\n{}\n```",
        usage.lines().map(str::trim).collect::<Vec<_>>().join("\n")
    )?;
    let children: Vec<&Command> =
        command.get_subcommands().filter(|child| !child.is_hide_set()).collect();
    if !children.is_empty() {
        writeln!(page, "\n| Command | |\n| --- | --- |")?;
        for child in &children {
            let about = child.get_about().map(ToString::to_string).unwrap_or_default();
            writeln!(page, "| `{path} {}` | {} |", child.get_name(), escape(&about))?;
        }
    }
    let positionals: Vec<&Arg> =
        command.get_positionals().filter(|arg| !arg.is_hide_set()).collect();
    let options: Vec<&Arg> =
        command.get_arguments().filter(|arg| !arg.is_positional() && !arg.is_hide_set()).collect();
    if children.is_empty() || path == "shoal" {
        write_args(page, &positionals, &options, path)?;
    }
    for child in children {
        write_command(page, child, &format!("{path} {}", child.get_name()))?;
    }
    Ok(())
}

fn write_args(
    page: &mut String,
    positionals: &[&Arg],
    options: &[&Arg],
    path: &str,
) -> std::fmt::Result {
    let is_common = |arg: &Arg| {
        matches!(arg.get_id().as_str(), "help" | "version")
            || (path != "shoal" && arg.is_global_set())
    };
    let mut rows = Vec::new();
    for arg in positionals {
        rows.push((format!("`{}`", names(arg)), help(arg)));
    }
    for arg in options.iter().filter(|arg| !is_common(arg)) {
        let short = arg.get_short().map(|short| format!("`-{short}`, ")).unwrap_or_default();
        let long = arg.get_long().unwrap_or_default();
        let value = if arg.get_action().takes_values() {
            format!(" {}", names(arg))
        } else {
            String::new()
        };
        rows.push((format!("{short}`--{long}{value}`"), help(arg)));
    }
    if rows.is_empty() {
        return Ok(());
    }
    writeln!(page, "\n| Argument | |\n| --- | --- |")?;
    for (name, help) in rows {
        writeln!(page, "| {} | {} |", escape(&name), escape(&help))?;
    }
    Ok(())
}

fn names(arg: &Arg) -> String {
    let names = arg.get_value_names().unwrap_or_default();
    names.iter().map(|name| name.as_str()).collect::<Vec<_>>().join(" ")
}

fn help(arg: &Arg) -> String {
    let mut text = arg.get_help().map(ToString::to_string).unwrap_or_default();
    let values: Vec<String> =
        arg.get_possible_values().iter().map(|value| format!("`{}`", value.get_name())).collect();
    let is_flag = !arg.get_action().takes_values() || values.iter().any(|value| value == "`true`");
    if !values.is_empty() && !is_flag && values.len() < 8 {
        text = format!("{text}: {}", values.join(", "));
    }
    let defaults: Vec<String> = arg
        .get_default_values()
        .iter()
        .map(|value| value.to_string_lossy().into_owned())
        .filter(|value| !value.is_empty())
        .collect();
    if !defaults.is_empty() && !arg.is_hide_default_value_set() && !is_flag {
        text = format!("{text} [default: {}]", defaults.join(" "));
    }
    if let Some(name) = arg.get_env() {
        text = format!("{text} [env: {}]", name.to_string_lossy());
    }
    text
}

fn escape(text: &str) -> String {
    text.replace('|', "\\|").replace('\n', " ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Build, command};

    #[test]
    fn every_visible_command_is_described() {
        let page = markdown(&command(Build { version: "0", commit: "0" }));
        for line in [
            "## shoal service create",
            "## shoal swarm join-token",
            "| `--replicas N` | Number of tasks [default: 1] |",
            "| `IMAGE [COMMAND] [ARG...]` | Image, and what replaces its command |",
        ] {
            assert!(page.lines().any(|found| found == line), "{line}\n{page}");
        }
        assert!(!page.contains("dial-stdio"));
    }
}
