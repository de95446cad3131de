//! The small parts that OTLP's messages are made of.

use jiff::Timestamp;
use opentelemetry_proto::tonic::common::v1::AnyValue;
use opentelemetry_proto::tonic::common::v1::InstrumentationScope;
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::transform::common::tonic::ResourceAttributesWithSchema;

/// Who we are.
pub(super) fn resource(resource: &opentelemetry_sdk::Resource) -> Resource {
    Resource {
        attributes: ResourceAttributesWithSchema::from(resource).attributes.0,
        ..Resource::default()
    }
}

/// What part of us speaks.
pub(super) fn scope(name: &str) -> InstrumentationScope {
    InstrumentationScope {
        name: name.to_owned(),
        ..InstrumentationScope::default()
    }
}

/// An attribute of the name `key`.
pub(super) fn attribute(key: &str, value: AnyValue) -> KeyValue {
    KeyValue {
        key: key.to_owned(),
        value: Some(value),
        ..KeyValue::default()
    }
}

/// A text as a value.
pub(super) fn text(text: &str) -> AnyValue {
    AnyValue {
        value: Some(Value::StringValue(text.to_owned())),
    }
}

/// A number as a value; one that is too large is the largest.
pub(super) fn number(number: u64) -> AnyValue {
    let number = number.try_into().unwrap_or(i64::MAX);
    AnyValue {
        value: Some(Value::IntValue(number)),
    }
}

/// Nanoseconds since 1970.
pub(super) fn nanos(time: Timestamp) -> u64 {
    time.as_nanosecond().try_into().unwrap_or_default()
}
