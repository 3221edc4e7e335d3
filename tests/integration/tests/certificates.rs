//! Certificates renew in time, and an expired one is refused with its reason.

#![allow(clippy::unwrap_used)]

use integration::{IMAGE, LONG, booted, wait_until};

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
