//! Reads single values of the configuration file, and refuses them with their place in it.

use std::ops::{Range, RangeInclusive};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;
use toml::Spanned;

use super::{ConfigError, SHAPING_MAX, SHAPING_MIN};

/// Where the values come from: all that a refusal has to name.
pub(super) struct Source<'a> {
    pub(super) text: &'a str,
    pub(super) path: &'a Path,
}

impl Source<'_> {
    pub(super) fn refuse(
        &self,
        key: &str,
        span: Range<usize>,
        problem: impl Into<String>,
    ) -> ConfigError {
        let before = self.text.as_bytes().iter().take(span.start);
        let line = 1 + before.filter(|byte| **byte == b'\n').count();
        let (path, key) = (self.path.to_owned(), key.to_owned());
        ConfigError::Invalid { path, line, key, problem: problem.into() }
    }

    /// What the TOML reader refuses: syntax, unknown keys, and values of the wrong type.
    pub(super) fn malformed(&self, mut error: toml::de::Error) -> ConfigError {
        let span = error.span().unwrap_or_default();
        // Without its input, the error prints as the message and then the key: "in `node.mtu`".
        error.set_input(None);
        let shown = error.to_string();
        let table = shown.rsplit_once("\nin `");
        let table = table.and_then(|(_, key)| key.trim_end().strip_suffix('`'));
        // An unknown key is not part of that: "unknown field `mtuu`, expected one of".
        let unknown = error.message().strip_prefix("unknown field `");
        let unknown = unknown.and_then(|rest| rest.split('`').next());
        let key: Vec<&str> = table.into_iter().chain(unknown).collect();
        let key = if key.is_empty() { "syntax".to_owned() } else { key.join(".") };
        let problem = format!("{}; correct or remove it", error.message().replace('\n', ", "));
        self.refuse(&key, span, problem)
    }

    pub(super) fn number(
        &self,
        key: &str,
        value: Option<Spanned<i64>>,
        default: u32,
        range: RangeInclusive<u32>,
    ) -> Result<u32, ConfigError> {
        let Some(value) = value else {
            return Ok(default);
        };
        let number = u32::try_from(*value.get_ref()).ok();
        number.filter(|number| range.contains(number)).ok_or_else(|| {
            let (min, max) = (range.start(), range.end());
            let problem = format!("{} is not within {min} to {max}", value.get_ref());
            self.refuse(key, value.span(), format!("{problem}; choose a number that is"))
        })
    }

    /// A whole number with its unit: `us`, `ms` or `s`.
    pub(super) fn duration(
        &self,
        key: &str,
        value: Option<Spanned<String>>,
        default: Duration,
    ) -> Result<Duration, ConfigError> {
        let Some(value) = value else {
            return Ok(default);
        };
        let text = value.get_ref();
        let digits_len = text.bytes().take_while(u8::is_ascii_digit).count();
        let (digits, unit) = text.split_at(digits_len);
        let duration = digits.parse().ok().and_then(|number: u64| match unit {
            "us" => Some(Duration::from_micros(number)),
            "ms" => Some(Duration::from_millis(number)),
            "s" => Some(Duration::from_secs(number)),
            _ => None,
        });
        duration.filter(|time| (SHAPING_MIN..=SHAPING_MAX).contains(time)).ok_or_else(|| {
            let problem = format!(
                "{text:?} is not a time within {SHAPING_MIN:?} to {SHAPING_MAX:?}; write a whole \
                 number with us, ms or s, as in \"25ms\""
            );
            self.refuse(key, value.span(), problem)
        })
    }

    pub(super) fn path(
        &self,
        key: &str,
        value: Option<Spanned<String>>,
        default: &str,
    ) -> Result<PathBuf, ConfigError> {
        let Some(value) = value else {
            return Ok(PathBuf::from(default));
        };
        let path = PathBuf::from(value.get_ref());
        if !path.is_absolute() || value.get_ref().contains('\0') {
            let problem = format!("{:?} is not an absolute path; start it with /", value.get_ref());
            return Err(self.refuse(key, value.span(), problem));
        }
        Ok(path)
    }

    pub(super) fn prefixes(
        &self,
        key: &str,
        list: &[Spanned<String>],
    ) -> Result<Vec<IpNet>, ConfigError> {
        list.iter().map(|value| self.prefix(key, value)).collect()
    }

    pub(super) fn prefix(&self, key: &str, value: &Spanned<String>) -> Result<IpNet, ConfigError> {
        let text = value.get_ref();
        let Ok(net) = text.parse::<IpNet>() else {
            let problem = format!("{text:?} is not a prefix; write it like \"10.244.1.0/24\"");
            return Err(self.refuse(key, value.span(), problem));
        };
        if net != net.trunc() {
            let problem = format!("{net} has host bits set; write \"{}\"", net.trunc());
            return Err(self.refuse(key, value.span(), problem));
        }
        Ok(net)
    }
}
