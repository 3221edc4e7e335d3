//! What is wrong with a node stands on `node ls`: a clock that is off, a disk that is full.

#![allow(clippy::unwrap_used)]

use integration::{Host, LONG, Lab, booted, wait_for, wait_until};
use serde_json::Value;

/// The conditions of the node named `name`, as `asked` knows them.
fn conditions(asked: &Host, name: &str) -> anyhow::Result<String> {
    let args = ["node", "ls", "--format", "{{.Hostname}}|{{.Conditions}}"];
    let lines = asked.shoal(&args)?.lines()?;
    let found =
        lines.iter().filter_map(|line| line.split_once('|')).find(|(host, _)| *host == name);
    Ok(found.map(|(_, conditions)| conditions.to_owned()).unwrap_or_default())
}

fn init(lab: &Lab) {
    let first = lab.host(1);
    first.shoal(&["swarm", "init", "--advertise-addr", first.address()]).unwrap().ok().unwrap();
    for number in 2..=lab.hosts().len() {
        lab.host(number).join(first, "manager").unwrap();
    }
    first.wait_for_nodes(lab.hosts().len(), LONG).unwrap();
}

/// What `faketime` puts in front of a program. It waits for its program itself, and a signal to it
/// would not reach the daemon; `env` becomes the daemon.
fn preload() -> String {
    let words = ["-f", "+1s", "printenv", "LD_PRELOAD"];
    let printed = std::process::Command::new("faketime").args(words).output().unwrap();
    format!("LD_PRELOAD={}", String::from_utf8(printed.stdout).unwrap().trim())
}

fn wait_for_condition(asked: &Host, name: &str, text: &str) {
    wait_until(&format!("`{text}` on {name}"), LONG, || {
        let found = conditions(asked, name)?;
        anyhow::ensure!(found.contains(text), "found `{found}`");
        Ok(true)
    })
    .unwrap();
}

#[test]
fn a_leader_whose_clock_is_ahead_is_marked_and_another_leads() {
    let lab = Lab::new(3).unwrap();
    lab.host(1).start_under(&["env", &preload(), "FAKETIME=+60s"]);
    for host in lab.hosts() {
        host.start().unwrap();
    }
    init(&lab);
    let asked = lab.host(2);
    // The clocks are compared over a network, on a machine that may be busy.
    let texts: Vec<String> = (58..=62).map(|secs| format!("clock {secs} s ahead")).collect();
    wait_until("h1 to be marked", LONG, || {
        let found = conditions(asked, "h1")?;
        anyhow::ensure!(texts.contains(&found), "found `{found}`");
        Ok(true)
    })
    .unwrap();
    let second = wait_for("another leader", LONG, || {
        let leader = asked.leader()?;
        Ok((leader != "h1").then_some(leader))
    })
    .unwrap();
    let status = asked.shoal(&["node", "inspect", "h1"]).unwrap().json().unwrap();
    let shown = status[0]["Conditions"][0].as_str().unwrap();
    assert!(texts.iter().any(|text| text == shown), "{shown}");

    // Of the two that are left, only the one whose clock is right may lead.
    let (second, third) = match second.as_str() {
        "h2" => (lab.host(2), lab.host(3)),
        _ => (lab.host(3), lab.host(2)),
    };
    second.kill().unwrap();
    wait_until("the other one to lead", LONG, || Ok(third.leader()? == third.name())).unwrap();
    second.start().unwrap();

    // A clock that is right again is marked no more.
    lab.host(1).stop().unwrap();
    lab.host(1).start_under(&[]);
    lab.host(1).start().unwrap();
    wait_until("h1 to be in order", LONG, || {
        let found = conditions(third, "h1")?;
        anyhow::ensure!(found.is_empty(), "found `{found}`");
        Ok(true)
    })
    .unwrap();
    third.wait_for_nodes(3, LONG).unwrap();
}

#[test]
fn a_full_disk_is_named_on_the_managers_node() {
    let lab = booted(3).unwrap();
    let full = lab.host(1);
    full.stop().unwrap();
    let size = ["-t", "tmpfs", "-o", "size=256m", "tmpfs"];
    std::fs::create_dir_all(full.data_dir()).unwrap();
    let mounted = std::process::Command::new("mount").args(size).arg(full.data_dir()).status();
    assert!(mounted.unwrap().success());
    full.start().unwrap();
    init(&lab);
    let filler = full.data_dir().join("filler");
    // The write fails when the disk is full, which is what it is for.
    drop(std::fs::write(&filler, vec![1; 512 << 20]));
    let text = format!("disk full below {}", full.data_dir().display());
    // The full one leads no more, and says itself what the others say of it.
    for asked in lab.hosts().iter().rev() {
        wait_for_condition(asked, "h1", &text);
    }
    wait_until("another leader", LONG, || Ok(lab.host(2).leader()? != "h1")).unwrap();
    let rows: Vec<Value> = ["h2", "h3"]
        .iter()
        .flat_map(|name| {
            let inspected = lab.host(2).shoal(&["node", "inspect", name]).unwrap().json().unwrap();
            inspected.as_array().cloned().unwrap()
        })
        .collect();
    assert!(rows.iter().all(|row| row.get("Conditions").is_none()), "{rows:?}");

    std::fs::remove_file(&filler).unwrap();
    wait_until("h1 to be in order", LONG, || Ok(conditions(lab.host(2), "h1")?.is_empty()))
        .unwrap();
}

#[test]
fn a_single_manager_names_its_full_disk_though_nothing_can_be_stored() {
    let lab = Lab::new(1).unwrap();
    let host = lab.host(1);
    let size = ["-t", "tmpfs", "-o", "size=256m", "tmpfs"];
    std::fs::create_dir_all(host.data_dir()).unwrap();
    let mounted = std::process::Command::new("mount").args(size).arg(host.data_dir()).status();
    assert!(mounted.unwrap().success());
    host.start().unwrap();
    init(&lab);
    drop(std::fs::write(host.data_dir().join("filler"), vec![1; 512 << 20]));
    wait_for_condition(host, "h1", "disk full below");
}
