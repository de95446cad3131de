//! The trace that a call is part of already: W3C Trace Context, as its client sends it.

use opentelemetry::trace::SpanContext;
use opentelemetry::trace::SpanId;
use opentelemetry::trace::TraceFlags;
use opentelemetry::trace::TraceId;
use opentelemetry::trace::TraceState;

/// What a `traceparent` says. Its ids stay text until a span is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parent<'a> {
    trace: &'a str,
    span: &'a str,
    flags: u8,
}

impl<'a> Parent<'a> {
    /// Reads a header's value; one that is malformed is none.
    pub fn parse(text: &'a str) -> Option<Self> {
        let mut parts = text.trim().split('-');
        let mut part = |length| {
            let part = parts.next()?;
            let hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
            (part.len() == length && part.bytes().all(hex)).then_some(part)
        };
        let (version, trace, span, flags) = (part(2)?, part(32)?, part(16)?, part(2)?);
        // What comes behind belongs to versions to come.
        let known = match version {
            "00" => parts.next().is_none(),
            "ff" => false,
            _ => true,
        };
        let is_set = |id: &str| id.bytes().any(|digit| digit != b'0');
        if !known || !is_set(trace) || !is_set(span) {
            return None;
        }
        Some(Self {
            trace,
            span,
            flags: u8::from_str_radix(flags, 16).ok()?,
        })
    }

    /// The id of the trace: 32 hexadecimal digits.
    pub fn trace_id(&self) -> &'a str {
        self.trace
    }

    pub(super) fn is_sampled(&self) -> bool {
        self.flags & 1 == 1
    }

    /// What traces are chosen by.
    pub(super) fn low_bits(&self) -> u64 {
        let low = self.trace.get(16..).unwrap_or_default();
        u64::from_str_radix(low, 16).unwrap_or_default()
    }

    /// The whole of it, with a `tracestate` unless that is malformed or longer than anybody has to
    /// bear.
    pub(super) fn context(&self, state: Option<&str>) -> Option<SpanContext> {
        let state = state.filter(|state| state.len() <= LONGEST_STATE);
        let state = state.and_then(|state| state.parse::<TraceState>().ok());
        Some(SpanContext::new(
            TraceId::from_hex(self.trace).ok()?,
            SpanId::from_hex(self.span).ok()?,
            TraceFlags::new(self.flags) & TraceFlags::SAMPLED,
            true,
            state.unwrap_or_default(),
        ))
    }
}

/// In bytes.
const LONGEST_STATE: usize = 512;

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use opentelemetry::propagation::TextMapPropagator as _;
    use opentelemetry::trace::TraceContextExt as _;
    use opentelemetry_sdk::propagation::TraceContextPropagator;
    use proptest::prelude::*;

    use super::*;

    /// What the SDK makes of the same headers.
    fn oracle(parent: &str, state: &str) -> Option<SpanContext> {
        let headers = [("traceparent", parent), ("tracestate", state)];
        let headers: HashMap<_, _> = headers
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into();
        let context = TraceContextPropagator::new().extract(&headers);
        let context = context.span().span_context().clone();
        context.is_valid().then_some(context)
    }

    #[test]
    fn what_is_no_parent_is_none() {
        let (trace, span) = ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331");
        let (no_trace, no_span) = ("0".repeat(32), "0".repeat(16));
        let upper = trace.to_uppercase();
        for bad in [
            String::new(),
            "00".into(),
            format!("00-{trace}-{span}"),
            format!("00-{trace}-{span}-01-"),
            format!("00-{trace}-{span}-01-more"),
            format!("00-{trace}-{span}-1"),
            format!("00-{trace}-{span}-0g"),
            format!("00-{trace}-{span}-+1"),
            format!("00-{trace}-{no_span}-01"),
            format!("00-{no_trace}-{span}-01"),
            format!("00-{upper}-{span}-01"),
            format!("00-{}-{span}-01", &trace[1..]),
            format!("00-{trace}0-{span}-01"),
            format!("00-+{}-{span}-01", &trace[1..]),
            format!("ff-{trace}-{span}-01"),
            format!("0-{trace}-{span}-01"),
            format!("00-{trace}é-{span}-01"),
        ] {
            assert_eq!(Parent::parse(&bad), None, "{bad}");
        }
        for good in [
            format!("00-{trace}-{span}-01"),
            format!(" 00-{trace}-{span}-01 "),
            format!("00-{trace}-{span}-ff"),
            format!("01-{trace}-{span}-01-more"),
        ] {
            let parent = Parent::parse(&good).expect("a parent");
            assert!(parent.is_sampled(), "{good}");
            assert_eq!(parent.trace_id(), trace);
        }
    }

    #[test]
    fn a_state_that_is_long_or_malformed_is_none() {
        let text = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let parent = Parent::parse(text).expect("a parent");
        let long = format!("a={}", "b".repeat(511));
        for (state, expected) in [("a=b,c=d", "a=b,c=d"), ("a", ""), (long.as_str(), "")] {
            let context = parent.context(Some(state)).expect("a context");
            assert_eq!(context.trace_state().header(), expected);
        }
    }

    proptest! {
        #[test]
        fn what_is_a_parent_is_one_to_the_sdk(
            text in prop_oneof![
                any::<String>(),
                "[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}",
                "00-[0-9a-f+-]{30,34}-[0-9a-fA-F]{15,17}-[0-9a-f]{1,3}",
            ],
            state in "[a-z]{1,3}=[a-z]{1,3}",
        ) {
            if let Some(parent) = Parent::parse(&text) {
                let context = parent.context(Some(&state));
                // Versions to come are for the SDK none at all.
                if text.starts_with("00") {
                    prop_assert_eq!(&context, &oracle(&text, &state));
                }
                let context = context.expect("a context");
                prop_assert!(context.is_valid());
                prop_assert_eq!(context.is_sampled(), parent.is_sampled());
            }
        }

        #[test]
        fn what_clients_send_is_a_parent(trace in 1_u128.., span in 1_u64.., flags: u8) {
            let text = format!("00-{trace:032x}-{span:016x}-{flags:02x}");
            let parent = Parent::parse(&text).expect("a parent");
            prop_assert_eq!(parent.low_bits(), u64::try_from(trace & u128::from(u64::MAX))?);
            prop_assert_eq!(parent.context(None), oracle(&text, ""));
        }
    }
}
