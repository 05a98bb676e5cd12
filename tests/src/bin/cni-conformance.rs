//! `cni-conformance`: asks any CNI plugin the table of the conformance kit. See `tests/README.md`.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use e2e::conformance::{self, Case, Expectations, Plugin, Report};

const USAGE: &str = "\
usage: cni-conformance --plugin PATH --conf FILE [options]
  --plugin PATH          the plugin's executable
  --conf FILE            its network configuration, a plugin's or a list's (JSON)
  --cni-path DIRS        CNI_PATH; default: the directory of the plugin
  --node-netns PATH      namespace to run the plugin in; default: a new one per case
  --capability NAME      the plugin has this optional capability (repeatable); also read from
                         `capabilities` of the configuration
  --delegates-ipam       the plugin serves the key `ipam` though the configuration has none
  --expect FILE          known differences, `id: reason` lines: exit 0 if exactly these fail
  --only N               only the cases of line N of the checklist, or whose id begins with N
  --json                 print a JSON array instead of a table
  --list                 print the cases and ask nothing
exit code: 0 as expected, 1 not as expected, 2 the kit could not run. Needs root.";

/// What the command line asks for.
#[derive(Default)]
struct Options {
    plugin: Option<PathBuf>,
    conf: Option<PathBuf>,
    cni_path: Option<String>,
    node_netns: Option<PathBuf>,
    capabilities: Vec<String>,
    delegates_ipam: bool,
    expect: Option<PathBuf>,
    only: Option<String>,
    json: bool,
    list: bool,
    help: bool,
}

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("cni-conformance: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// Whether the plugin behaved as expected.
fn run() -> Result<bool> {
    let options = parse(std::env::args().skip(1))?;
    // println! panics when nobody reads on; `| head` must not.
    let mut stdout = std::io::stdout().lock();
    if options.help {
        writeln!(stdout, "{USAGE}")?;
        return Ok(true);
    }
    let wanted = |case: &Case| options.only.as_deref().is_none_or(|only| selects(only, case));
    if options.list {
        for case in conformance::cases().iter().filter(|case| wanted(case)) {
            let optional = case.optional_capability();
            let optional = optional.map(|name| format!(" [optional capability {name}]"));
            writeln!(stdout, "{:<34} {}{}", case.id, case.sentence, optional.unwrap_or_default())?;
        }
        return Ok(true);
    }
    if !rustix::process::geteuid().is_root() {
        bail!("network namespaces need root; run it as root");
    }
    let plugin = plugin(&options)?;
    let expectations = match &options.expect {
        Some(path) => {
            let text = std::fs::read_to_string(path)
                .with_context(|| format!("read the expectations {}", path.display()))?;
            Expectations::parse(&text).with_context(|| format!("read {}", path.display()))?
        }
        None => Expectations::default(),
    };
    let report = conformance::run_only(&plugin, wanted);
    if report.cases.is_empty() {
        bail!("no case is selected; --list shows their ids");
    }
    conclude(&options, &expectations, &report)
}

fn conclude(options: &Options, expectations: &Expectations, report: &Report) -> Result<bool> {
    let mut stdout = std::io::stdout().lock();
    if options.json {
        writeln!(stdout, "{}", report.to_json()?)?;
    } else {
        write!(stdout, "{report}")?;
    }
    let differences = match options.only {
        Some(_) => expectations.compare_part(report),
        None => expectations.compare(report),
    };
    if options.expect.is_some() {
        eprint!("{differences}");
    }
    Ok(differences.is_empty())
}

fn plugin(options: &Options) -> Result<Plugin> {
    let (Some(binary), Some(conf)) = (&options.plugin, &options.conf) else {
        bail!("--plugin and --conf are required\n{USAGE}");
    };
    let binary =
        binary.canonicalize().with_context(|| format!("find the plugin {}", binary.display()))?;
    let text = std::fs::read_to_string(conf)
        .with_context(|| format!("read the configuration {}", conf.display()))?;
    let conf = serde_json::from_str(&text)
        .with_context(|| format!("read the configuration {} as JSON", conf.display()))?;
    let mut plugin = Plugin::new(binary, &conf)?;
    plugin.capabilities.extend(options.capabilities.iter().cloned());
    plugin.delegates_ipam |= options.delegates_ipam;
    plugin.node.clone_from(&options.node_netns);
    if let Some(cni_path) = &options.cni_path {
        plugin.cni_path.clone_from(cni_path);
    }
    Ok(plugin)
}

/// A number selects the cases of that line, anything else those whose id begins with it.
fn selects(only: &str, case: &Case) -> bool {
    match only.parse::<u8>() {
        Ok(line) => case.line == line,
        Err(_) => case.id.starts_with(only),
    }
}

fn parse(mut args: impl Iterator<Item = String>) -> Result<Options> {
    let mut options = Options::default();
    while let Some(arg) = args.next() {
        let mut value = || args.next().with_context(|| format!("{arg} needs a value\n{USAGE}"));
        match arg.as_str() {
            "--plugin" => options.plugin = Some(value()?.into()),
            "--conf" => options.conf = Some(value()?.into()),
            "--cni-path" => options.cni_path = Some(value()?),
            "--node-netns" => options.node_netns = Some(value()?.into()),
            "--capability" => options.capabilities.push(value()?),
            "--delegates-ipam" => options.delegates_ipam = true,
            "--expect" => options.expect = Some(value()?.into()),
            "--only" => options.only = Some(value()?),
            "--json" => options.json = true,
            "--list" => options.list = true,
            "--help" | "-h" => options.help = true,
            _ => bail!("unknown argument {arg}\n{USAGE}"),
        }
    }
    Ok(options)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Options> {
        parse(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn an_argument_that_is_unknown_or_lacks_its_value_is_refused() {
        assert!(parsed("--plugin /p --conf /c --capability ips --capability mac").is_ok());
        assert!(parsed("--plugin").is_err());
        assert!(parsed("--plugins /p").is_err());
    }

    #[test]
    fn only_selects_a_line_by_number_and_cases_by_the_beginning_of_their_id() {
        let count =
            |only: &str| conformance::cases().iter().filter(|case| selects(only, case)).count();
        assert_eq!(count("6"), 1);
        assert_eq!(count("b06-error-on-stdout"), 1);
        assert!(count("b06") == 1 && count("b02-add") > 1);
        assert_eq!(count("99"), 0);
    }
}
