//! Certificates renew in time, and an expired one is refused with its reason.

#![allow(clippy::unwrap_used)]

use integration::{Host, IMAGE, LONG, booted, wait_until};

fn init(lab: &integration::Lab) {
    let first = lab.host(1);
    let args = ["swarm", "init", "--advertise-addr", first.address(), "--cert-expiry", "1h"];
    first.shoal(&args).unwrap().ok().unwrap();
    lab.host(2).join(first, "worker").unwrap();
    first.wait_for_nodes(2, LONG).unwrap();
}

#[test]
fn a_certificate_is_renewed_before_it_ends() {
    let lab = booted(2).unwrap();
    init(&lab);
    let expires = || {
        let args = ["node", "inspect", "--format", "{{.CertificateExpiresAt}}", "h2"];
        lab.host(1).shoal(&args)?.ok()
    };
    let before = expires().unwrap();
    for host in lab.hosts() {
        host.stop().unwrap();
        host.start_under(&["faketime", "-f", "+50m"]);
    }
    for host in lab.hosts() {
        host.start().unwrap();
    }
    wait_until("a new certificate", LONG, || Ok(expires()? > before)).unwrap();
    lab.host(1).wait_for_nodes(2, LONG).unwrap();
}

#[test]
fn an_expired_certificate_is_refused_with_the_reason() {
    let lab = booted(2).unwrap();
    init(&lab);
    let worker = lab.host(2);
    worker.stop().unwrap();
    worker.start_under(&["faketime", "-f", "+3h"]);
    worker.start().unwrap();
    wait_until("the reason on the worker", LONG, || {
        let info = worker.shoal(&["info", "--format", "{{.Swarm.Error}}"])?.ok()?;
        anyhow::ensure!(info.contains("expired"), "{info}");
        Ok(true)
    })
    .unwrap();
    let args = ["service", "create", "-d", "--name", "x", "--replicas", "0", IMAGE];
    lab.host(1).shoal(&args).unwrap().ok().unwrap();
}

#[test]
fn a_node_that_the_managers_find_expired_is_refused_until_it_joins_again() {
    let lab = booted(2).unwrap();
    init(&lab);
    let (manager, worker) = (lab.host(1), lab.host(2));
    let expires = || {
        let args = ["node", "inspect", "--format", "{{.CertificateExpiresAt}}", "h1"];
        manager.shoal(&args)?.ok()
    };
    let before = expires().unwrap();
    worker.stop().unwrap();
    // The manager renews its own certificate while the worker is away.
    restart_at(manager, "+50m");
    wait_until("the manager's new certificate", LONG, || Ok(expires()? > before)).unwrap();
    restart_at(manager, "+65m");

    // By its own clock, which is late, the worker's certificate is good.
    worker.start().unwrap();
    wait_until("the managers' refusal", LONG, || {
        anyhow::ensure!(worker.log().contains("CertificateExpired"), "{}", worker.log_tail(3));
        Ok(true)
    })
    .unwrap();
    let status = ["node", "ls", "--filter", "name=h2", "--format", "{{.Status}}"];
    wait_until("the worker to be down", LONG, || {
        Ok(manager.shoal(&status)?.ok()?.starts_with("Down"))
    })
    .unwrap();

    // With the right time it says itself what is wrong and what to do, and that helps.
    restart_at(worker, "+65m");
    wait_until("the reason on the worker", LONG, || {
        let info = worker.shoal(&["info", "--format", "{{.Swarm.Error}}"])?.ok()?;
        anyhow::ensure!(info.contains("leave the swarm and join again"), "{info}");
        Ok(true)
    })
    .unwrap();
    worker.shoal(&["swarm", "leave"]).unwrap().ok().unwrap();
    worker.join(manager, "worker").unwrap();
    wait_until("the worker to be ready", LONG, || {
        let lines = manager.shoal(&status)?.lines()?;
        Ok(lines.iter().any(|line| line.starts_with("Ready")))
    })
    .unwrap();
}

fn restart_at(host: &Host, offset: &str) {
    if host.ended().unwrap().is_none() {
        host.stop().unwrap();
    }
    host.start_under(&["faketime", "-f", offset]);
    host.start().unwrap();
}
