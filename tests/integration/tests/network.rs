//! The test hosts themselves: they reach each other, a cut link does not, and nothing stays.

use std::process::Command;

use integration::Lab;

#[test]
fn hosts_reach_each_other_until_a_link_is_cut() {
    let lab = Lab::new(2).unwrap();
    let (a, b) = (lab.host(1), lab.host(2));
    let reaches = || {
        let listener = format!("exec 3<>/dev/tcp/{}/1", b.address());
        // Nobody listens: a reachable host refuses, an unreachable one lets the time run out.
        let answer = a.inside("timeout", &["2", "bash", "-c", &listener]).unwrap();
        answer.err.contains("refused")
    };
    assert!(reaches());
    b.cut().unwrap();
    assert!(!reaches());
    b.mend().unwrap();
    assert!(reaches());
    let namespace = a.namespace().to_owned();
    drop(lab);
    let list = Command::new("ip").args(["netns", "list"]).output().unwrap();
    assert!(!String::from_utf8_lossy(&list.stdout).contains(&namespace));
}
