//! Output of containers, read while it is written and afterwards.

use futures::StreamExt;
use ports::runtime::{ContainerConfig, LogOptions, LogStream, Runtime};

use crate::support::{Host, block_on, eventually, shell, timeout};

pub(crate) const TESTS: &[crate::Test] = &[
    ("tail_since_and_until_select", || block_on(tail_since_and_until_select())),
    ("following_sees_every_line_across_rotation", || block_on(following_sees_every_line())),
];

async fn tail_since_and_until_select() {
    let host = Host::new().await;
    let script = "for i in 1 2 3; do echo line $i; sleep 0.05; done; echo last >&2";
    host.run(&shell("a", script)).await;
    let all = host.lines("a", LogOptions::default()).await;
    assert_eq!(all.len(), 4);
    assert_eq!(all[3], (LogStream::Stderr, "last\n".to_owned()));
    for (tail, count) in [(0, 0), (1, 1), (3, 3), (9, 4)] {
        let options = LogOptions { tail: Some(tail), ..LogOptions::default() };
        assert_eq!(host.lines("a", options).await, all[4 - count..], "tail {tail}");
    }
    let stream = host.runtime.logs("a", LogOptions::default());
    let lines: Vec<_> = stream.map(Result::unwrap).collect().await;
    let third = base::Timestamp(lines[2].at_ns / 1_000_000);
    let since = LogOptions { since: Some(third), ..LogOptions::default() };
    assert_eq!(host.lines("a", since).await, all[2..]);
    let until = LogOptions { until: Some(third), ..LogOptions::default() };
    assert_eq!(host.lines("a", until).await, all[..3]);
    let missing = host.runtime.logs("nope", LogOptions::default()).next().await;
    assert!(missing.unwrap().is_err());
}

async fn following_sees_every_line() {
    let host = Host::new().await;
    let config = ContainerConfig {
        log_file_bytes: 64 * 1024,
        log_files: 40,
        ..shell(
            "a",
            "while [ ! -e /go ]; do sleep 0.05; done; seq 1 20000; sleep 0.2; seq 20001 20010",
        )
    };
    host.start(&config).await.unwrap();
    let stream = host.runtime.logs("a", LogOptions { follow: true, ..LogOptions::default() });
    let pid = host.pid("a").await;
    std::fs::write(format!("/proc/{pid}/root/go"), "").unwrap();
    let lines: Vec<_> = timeout(stream.collect::<Vec<_>>()).await;
    let numbers: Vec<u32> = lines
        .into_iter()
        .map(|line| String::from_utf8(line.unwrap().data.to_vec()).unwrap().trim().parse().unwrap())
        .collect();
    let expected: Vec<u32> = (1..=20_010).collect();
    assert_eq!(numbers.len(), expected.len());
    assert_eq!(numbers, expected);
    let dir = host.data_dir().join("containers/a");
    let files = std::fs::read_dir(&dir)
        .unwrap()
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("output.log"));
    assert!(files.count() > 5, "it rotated");

    // A reader that goes away leaves nothing behind that the container notices.
    host.start(&shell("b", "while :; do echo x; sleep 0.01; done")).await.unwrap();
    let mut stream = host.runtime.logs("b", LogOptions { follow: true, ..LogOptions::default() });
    stream.next().await.unwrap().unwrap();
    drop(stream);
    eventually("it goes on", async || host.output("b").await.lines().count() > 20).await;
}
