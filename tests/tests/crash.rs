//! The daemon dies under load and comes back: what is lost, how soon workers carry traffic again,
//! and that no forged packet passes meanwhile.
//!
//! Usually three kills with two pods in each setup; `VIADUCT_E2E_LONG=1` makes them 50, and adds 50
//! with 110 pods.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, ensure};
use e2e::daemon::{Node, PortMode, Setup, on_each};
use e2e::netns::wait_until;
use e2e::pod::{IFNAME, Pod};
use e2e::traffic::{Flood, Forger, Stream, Watch, connect, forgeries, listen, udp_socket};
use rustix::process::Signal;

/// Datagrams per second of each flow.
const RATE: u32 = 10_000;

/// Bytes per millisecond of the TCP connection, 1 Gbit/s: what is lost shall be lost by the kill,
/// not because two cores are busy.
const TCP_PACE: usize = 125_000;

/// Most datagrams lost by a kill, and by a restart: 20 ms of a flow.
const LOST_MAX: u64 = 200;

/// Within so long after the daemon is ready, workers carry the flow, on a busy machine, too.
const CARRIED_WITHIN: Duration = Duration::from_secs(10);

/// Datagrams of the first flow that are still counted to an event after it: 20 ms.
const AFTERMATH: u64 = 200;

/// A kill and the restart after it.
struct Round {
    /// From the signal until the process is gone.
    dying: Duration,
    /// From its start until the daemon is ready.
    starting: Duration,
    /// From then until workers carry every flow.
    taking_over: Duration,
    /// For each flow, its numbers when the signal was sent, when traffic was back on the kernel's
    /// path, when the daemon was started, and when traffic was back on the workers' path.
    marks: Vec<[u64; 4]>,
}

/// Small numbers that are different every time.
struct Chance(u64);

impl Chance {
    fn new() -> Result<Chance> {
        let seed = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_nanos() as u64 | 1;
        eprintln!("seed {seed}");
        Ok(Chance(seed))
    }

    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}

fn flood(from: &Pod, to: &Pod) -> Result<Flood> {
    let sender = udp_socket(&from.namespace, from.v4.into())?;
    Flood::start(sender, udp_socket(&to.namespace, to.v4.into())?, RATE)
}

/// Kills the daemon at a random moment, starts it again, and waits until workers carry all flows.
fn round(node: &mut Node, flows: &[(&Pod, Flood)], chance: &mut Chance) -> Result<Round> {
    let marks = || flows.iter().map(|(_, flood)| flood.mark()).collect::<Vec<u64>>();
    let (_, first) = flows.first().context("a flow")?;
    first.wait_for(1000 + chance.below(3000))?;
    let at_kill = marks();
    let killed = Instant::now();
    node.stop_daemon(Signal::KILL)?;
    let dying = killed.elapsed();
    first.wait_for(AFTERMATH)?;
    let on_kernel = marks();
    first.wait_for(1000 + chance.below(3000))?;
    let at_start = marks();
    let started = Instant::now();
    node.start_daemon()?;
    let starting = started.elapsed();
    let ready = Instant::now();
    for (pod, _) in flows {
        wait_until("workers carry the flow again", CARRIED_WITHIN, || {
            // A tenth of a second of the flow.
            Ok(node.packets_from(pod)? >= u64::from(RATE) / 10)
        })
        .with_context(|| format!("from {}", pod.container_id))?;
    }
    let taking_over = ready.elapsed();
    first.wait_for(AFTERMATH)?;
    let on_workers = marks();
    let marks = |flow| [at_kill[flow], on_kernel[flow], at_start[flow], on_workers[flow]];
    let marks = (0..flows.len()).map(marks).collect();
    Ok(Round { dying, starting, taking_over, marks })
}

/// Kills under load `kills` times, and judges.
fn crash(node: &mut Node, flows: &[(&Pod, &Pod)], kills: u32, forger: &Pod) -> Result<()> {
    let mut chance = Chance::new()?;
    let (from, to) = *flows.first().context("a flow")?;
    let listener = listen(&to.namespace, to.v4.into(), 0)?;
    let (client, server) = connect(&from.namespace, listener.local_addr()?, &listener)?;
    let stream = Stream::start(client, server, Some(TCP_PACE));
    let began = Instant::now();
    let watch = Watch::start(node, to)?;
    let forged = forgeries(node, forger, to)?;
    forger.namespace.run("tc", &["qdisc", "del", "dev", IFNAME, "clsact"])?;
    let hand = Forger::start(&forger.namespace, IFNAME)?;
    let floods: Result<Vec<_>> =
        flows.iter().map(|(from, to)| Ok((*from, flood(from, to)?))).collect();
    let floods = floods?;
    let enough = AtomicBool::new(false);
    let rounds: Result<Vec<Round>> = std::thread::scope(|scope| {
        let forging = scope.spawn(|| -> Result<()> {
            for frame in forged.iter().cycle() {
                if enough.load(Ordering::Relaxed) {
                    break;
                }
                hand.send(frame)?;
                std::thread::sleep(Duration::from_micros(500)); // some 2000 a second
            }
            Ok(())
        });
        let rounds = (0..kills).map(|_| {
            let round = round(node, &floods, &mut chance)?;
            stream.wait_for_progress(Duration::from_secs(12)).context("TCP after a kill")?;
            Ok(round)
        });
        let rounds = rounds.collect();
        enough.store(true, Ordering::Relaxed);
        forging.join().expect("forging does not panic")?;
        rounds
    });
    let rounds = rounds?;
    let moved = stream.stop().context("the TCP connection survives")?;
    let rate = moved as f64 * 8e-9 / began.elapsed().as_secs_f64();
    for (who, seen) in watch.stop()? {
        ensure!(seen.is_empty(), "{who} saw forged packets: {:#?}", seen.first());
    }
    println!("{}: {kills} kills, TCP {rate:.1} Gbit/s over all", node.setup());
    judge(floods, &rounds)
}

/// Prints what was lost when, and fails if that is too much.
fn judge(floods: Vec<(&Pod, Flood)>, rounds: &[Round]) -> Result<()> {
    println!("flow          round   dying   start  take over  lost: kill  restart");
    let mut worst = 0;
    for (index, (pod, flood)) in floods.into_iter().enumerate() {
        let flooded = flood.stop()?;
        for (number, round) in rounds.iter().enumerate() {
            let [kill, on_kernel, start, on_workers] = round.marks[index];
            let lost =
                [flooded.lost_between(kill, on_kernel), flooded.lost_between(start, on_workers)];
            worst = worst.max(lost[0]).max(lost[1]);
            println!(
                "{:<12} {number:>6} {:>4} ms {:>4} ms {:>6} ms {:>11} {:>8}",
                pod.container_id,
                round.dying.as_millis(),
                round.starting.as_millis(),
                round.taking_over.as_millis(),
                lost[0],
                lost[1],
            );
        }
        let (sent, lost) = (flooded.sent, flooded.lost.len());
        println!("{:<12} {lost} of {sent} lost, {} doubled", pod.container_id, flooded.doubled);
    }
    ensure!(worst <= LOST_MAX, "{worst} datagrams lost at once, at most {LOST_MAX} may be");
    Ok(())
}

/// Whether the tests may take minutes.
fn long() -> bool {
    std::env::var_os("VIADUCT_E2E_LONG").is_some()
}

#[test]
#[ignore = "needs root"]
fn a_kill_under_load_costs_few_packets_and_no_connection() {
    on_each(Setup::modes_and_workers(), |node| {
        let (a, b) = (node.add_pod("sender")?, node.add_pod("receiver")?);
        let forger = node.add_pod("forger")?;
        crash(node, &[(&a, &b)], if long() { 50 } else { 3 }, &forger)
    });
}

#[test]
#[ignore = "needs root"]
fn with_110_pods_a_kill_costs_the_last_pod_no_more_than_the_first() {
    if !long() {
        eprintln!("takes minutes: set VIADUCT_E2E_LONG=1 to run it");
        return;
    }
    for (mode, kills) in [(PortMode::Auto, 50), (PortMode::Basic, 5)] {
        on_each(vec![Setup::new(mode, 1)], |node| {
            let pods: Result<Vec<Pod>> =
                (0..110).map(|number| node.add_pod(&format!("pod-{number}"))).collect();
            let pods = pods?;
            let forger = node.add_pod("forger")?;
            let flows = [(&pods[0], &pods[1]), (&pods[54], &pods[55]), (&pods[108], &pods[109])];
            crash(node, &flows, kills, &forger)
        });
    }
}
