//! The program as a shell sees it: exit codes, completion scripts, colours.

#![allow(clippy::unwrap_used)]

use std::io::Write;
use std::process::{Command, Output, Stdio};

use integration::{joined, program};

/// No daemon is here.
const NOWHERE: &str = "unix:///nonexistent/shoal.sock";

fn shoal(args: &[&str]) -> Output {
    let shoal = program("shoal", "SHOAL_BIN", false).unwrap();
    Command::new(shoal).args(args).env("SHOAL_HOST", NOWHERE).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn exit_codes_tell_a_wrong_command_line_from_a_failure() {
    for (args, code, says) in [
        (&["--help"][..], 0, "Usage"),
        (&["--version"], 0, "shoal"),
        (&["completion", "bash"], 0, "_shoal"),
        (&["node", "ls"], 1, "cannot connect to the daemon at unix:///nonexistent/shoal.sock"),
        (&["service", "rm", "x"], 1, "cannot connect"),
        (&[], 125, "Usage"),
        (&["nope"], 125, "nope"),
        (&["service", "create", "--nope", "x"], 125, "--nope"),
        (&["service", "create"], 125, "IMAGE"),
        (&["-H", "tcp://1.2.3.4:2375", "node", "ls"], 125, "--host"),
        (&["daemon", "--log-format", "xml"], 125, "--log-format"),
        (&["completion", "cobol"], 125, "cobol"),
    ] {
        let output = shoal(args);
        let said = text(&output.stdout) + &text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {said}");
        assert!(said.contains(says), "{args:?}: {said}");
    }
}

#[test]
fn a_shell_completes_with_its_script() {
    let script = text(&shoal(&["completion", "bash"]).stdout);
    let asked = format!(
        "{script}\nCOMP_WORDS=(shoal serv) COMP_CWORD=1; _shoal shoal serv shoal; \
         echo \"${{COMPREPLY[@]}}\"; \
         COMP_WORDS=(shoal service create --constr) COMP_CWORD=3; \
         _shoal shoal --constr create; echo \"${{COMPREPLY[@]}}\""
    );
    let output = Command::new("bash").args(["-c", &asked]).output().unwrap();
    assert_eq!(text(&output.stdout), "service\n--constraint\n", "{}", text(&output.stderr));
    for shell in ["zsh", "fish", "elvish", "powershell"] {
        let output = shoal(&["completion", shell]);
        assert!(output.status.success() && text(&output.stdout).contains("service"), "{shell}");
    }
}

#[test]
fn colours_are_for_terminals_whose_user_wants_them() {
    let shoal = program("shoal", "SHOAL_BIN", false).unwrap();
    let line = format!("{} --help", shoal.display());
    // script(1) gives it a terminal.
    let on_terminal = |no_color: Option<&str>| {
        let mut command = Command::new("script");
        command.args(["-qec", &line, "/dev/null"]).env("TERM", "xterm").env_remove("NO_COLOR");
        command.envs(no_color.map(|value| ("NO_COLOR", value)));
        text(&command.output().unwrap().stdout)
    };
    assert!(on_terminal(None).contains("\u{1b}["), "help has colours on a terminal");
    assert!(!on_terminal(Some("1")).contains("\u{1b}["), "NO_COLOR is heeded");
    let piped = Command::new(&shoal).arg("--help").output().unwrap();
    assert!(!text(&piped.stdout).contains("\u{1b}["), "a pipe has none");
}

/// As docker's, but for the case that nobody can be asked.
#[test]
fn the_ingress_network_is_removed_on_a_yes_only() {
    let lab = joined(1, 0).unwrap();
    let host = lab.host(1);
    let url = format!("unix://{}", host.socket().display());
    let remove = |answer: &str| {
        let mut command = Command::new(program("shoal", "SHOAL_BIN", false).unwrap());
        command.args(["-H", &url, "network", "rm", "ingress"]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(answer.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        let said = text(&output.stderr);
        assert!(said.starts_with("WARNING! Before removing the routing-mesh network"), "{said}");
        (output.status.code(), text(&output.stdout), said)
    };
    let is_there = || {
        let names = host.shoal(&["network", "ls", "--format", "{{.Name}}"]).unwrap();
        names.lines().unwrap().contains(&"ingress".to_owned())
    };
    let (code, _, said) = remove("");
    assert!(code == Some(1) && said.contains("nobody answered"), "{said}");
    let (code, out, _) = remove("n\n");
    assert_eq!((code, out.as_str(), is_there()), (Some(0), "", true));
    let (code, out, said) = remove("y\n");
    assert_eq!((code, out.as_str(), is_there()), (Some(0), "ingress\n", false), "{said}");
    let again = ["network", "create", "-d", "overlay", "--ingress", "mesh"];
    host.shoal(&again).unwrap().ok().unwrap();
}
