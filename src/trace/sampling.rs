//! Which calls have spans: the samplers of OpenTelemetry, asked before there is anything to sample.

use crate::trace::Parent;

/// Chooses the calls that have spans.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    parents: Parents,
    /// Of the calls that nobody else decides on, from 0 to 1.
    share: f64,
}

/// Who decides on a call that is part of a trace already.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Parents {
    /// Its client has.
    Decide,
    /// We do, by the id of the trace: others who take the same share take the same traces.
    Ignored,
}

/// A sampler that we do not have, or an argument that is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnknownSampler {
    /// Not the name of a sampler.
    #[error("{0:?} is no sampler that we have")]
    Name(String),
    /// Not a share.
    #[error("{0:?} is no number from 0 to 1")]
    Share(String),
}

impl Sampling {
    /// Reads what `OTEL_TRACES_SAMPLER` and `OTEL_TRACES_SAMPLER_ARG` say: where nothing,
    /// `parentbased_traceidratio` and 1.
    ///
    /// # Errors
    /// [`UnknownSampler`], with what it is.
    pub fn parse(name: Option<&str>, share: Option<&str>) -> Result<Self, UnknownSampler> {
        let read = || match share {
            None => Ok(1.0),
            Some(text) => match text.trim().parse() {
                Ok(share) if (0.0..=1.0).contains(&share) => Ok(share),
                Ok(_) | Err(_) => Err(UnknownSampler::Share(text.to_owned())),
            },
        };
        let (parents, share) = match name.unwrap_or("parentbased_traceidratio").trim() {
            "always_off" => (Parents::Ignored, 0.0),
            "always_on" => (Parents::Ignored, 1.0),
            "parentbased_always_off" => (Parents::Decide, 0.0),
            "parentbased_always_on" => (Parents::Decide, 1.0),
            "parentbased_traceidratio" => (Parents::Decide, read()?),
            "traceidratio" => (Parents::Ignored, read()?),
            other => return Err(UnknownSampler::Name(other.to_owned())),
        };
        Ok(Self { parents, share })
    }

    /// Whether a call with `parent` has a span; `roll` is a random number.
    pub(super) fn takes(&self, parent: Option<&Parent<'_>>, roll: impl FnOnce() -> u64) -> bool {
        match (parent, self.parents) {
            (Some(parent), Parents::Decide) => parent.is_sampled(),
            (Some(parent), Parents::Ignored) => self.takes_number(parent.low_bits()),
            (None, Parents::Decide | Parents::Ignored) => self.takes_number(roll()),
        }
    }

    /// As all SDKs do it, by all bits but the lowest.
    fn takes_number(&self, number: u64) -> bool {
        let number = number >> 1;
        let half = |bits: u64| f64::from(u32::try_from(bits).expect("32 bits"));
        let number = half(number >> 32) * 2_f64.powi(32) + half(number & u64::from(u32::MAX));
        number < self.share * 2_f64.powi(63)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLED: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    const UNSAMPLED: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00";

    /// Whether calls with a sampled parent, an unsampled one and none have spans.
    fn choice(name: Option<&str>, share: Option<&str>) -> [bool; 3] {
        let sampling = Sampling::parse(name, share).expect("a sampler");
        [Some(SAMPLED), Some(UNSAMPLED), None].map(|parent| {
            let parent = parent.map(|text| Parent::parse(text).expect("a parent"));
            sampling.takes(parent.as_ref(), || u64::MAX / 4)
        })
    }

    #[test]
    fn samplers_do_what_their_names_say() {
        for (name, share, expected) in [
            (None, None, [true, false, true]),
            (None, Some("0"), [true, false, false]),
            (Some("always_on"), None, [true, true, true]),
            (Some("always_off"), None, [false, false, false]),
            (Some("parentbased_always_on"), None, [true, false, true]),
            (Some("parentbased_always_off"), None, [true, false, false]),
            (
                Some("parentbased_traceidratio"),
                Some("0.3"),
                [true, false, true],
            ),
            (
                Some("parentbased_traceidratio"),
                Some("0.2"),
                [true, false, false],
            ),
            // The low bits of the trace are at about 0.52 of all.
            (Some("traceidratio"), Some("0.6"), [true, true, true]),
            (Some("traceidratio"), Some("0.5"), [false, false, true]),
            (Some("traceidratio"), Some("0.1"), [false, false, false]),
        ] {
            assert_eq!(choice(name, share), expected, "{name:?} {share:?}");
        }
    }

    #[test]
    fn what_is_no_sampler_is_named() {
        for (name, share, error) in [
            (
                "jaeger_remote",
                None,
                UnknownSampler::Name("jaeger_remote".into()),
            ),
            (
                "traceidratio",
                Some("1.1"),
                UnknownSampler::Share("1.1".into()),
            ),
            (
                "traceidratio",
                Some("-1"),
                UnknownSampler::Share("-1".into()),
            ),
            (
                "traceidratio",
                Some("NaN"),
                UnknownSampler::Share("NaN".into()),
            ),
            (
                "traceidratio",
                Some("half"),
                UnknownSampler::Share("half".into()),
            ),
        ] {
            assert_eq!(Sampling::parse(Some(name), share), Err(error));
        }
    }

    #[test]
    fn of_random_numbers_the_share_is_taken() {
        let sampling = Sampling::parse(None, Some("0.25")).expect("a sampler");
        let dice = crate::trace::Dice::default();
        let taken = (0..10_000).filter(|_| sampling.takes(None, || dice.roll()));
        let taken = taken.count();
        assert!((2250..2750).contains(&taken), "{taken}");
    }
}
