//! The methods that there are, with what the layer around them has to know of each.

use std::collections::HashMap;
use std::sync::Arc;

use prost::Message as _;
use prost_types::FileDescriptorSet;
use prost_types::MethodDescriptorProto;
use prost_types::ServiceDescriptorProto;

use crate::broker::Broker;
use crate::grpc::MAX_BATCH;
use crate::grpc::MAX_MESSAGE;
use crate::grpc::listener;
use crate::grpc::pb;
use crate::grpc::pb::admin_service_server::AdminServiceServer;
use crate::grpc::pb::grant_service_server::GrantServiceServer;
use crate::grpc::pb::key_broker_service_server::KeyBrokerServiceServer;
use crate::grpc::service::Service;
use crate::grpc::witness::Contract;
use crate::grpc::witness::Method;
use crate::grpc::witness::Rpc;
use crate::grpc::witness::Work;

/// The methods that there are, by path, from the contracts themselves.
pub(super) fn methods(broker: &Arc<Broker>, listen: &listener::Config) -> HashMap<String, Method> {
    let ours = |limit| {
        let service = KeyBrokerServiceServer::new(Service(Arc::clone(broker)))
            .max_decoding_message_size(limit)
            .max_encoding_message_size(limit);
        (Contract::Keys(service), limit)
    };
    let grants = {
        let service = GrantServiceServer::new(Service(Arc::clone(broker)))
            .max_decoding_message_size(MAX_CONTROL)
            .max_encoding_message_size(MAX_MESSAGE);
        (Contract::Grants(service), MAX_CONTROL)
    };
    let admin = {
        let service = AdminServiceServer::new(Service(Arc::clone(broker)))
            .max_decoding_message_size(MAX_BATCH)
            .max_encoding_message_size(MAX_BATCH);
        (Contract::Admin(service), MAX_BATCH)
    };
    let usual = ours(MAX_MESSAGE);
    let batch = ours(MAX_BATCH);
    let rpc = |path: &str, service: &ServiceDescriptorProto, method: &MethodDescriptorProto| {
        let ((service, limit), answer, work) = match method.name() {
            _ if service.name() == "AdminService" => (&admin, MAX_PAGE, Work::Control),
            _ if service.name() == "GrantService" => (&grants, MAX_PAGE, Work::Short),
            "EncryptBatch" | "DecryptBatch" => (&batch, MAX_HEADERS, Work::Long),
            "ListKeys" => (&usual, MAX_PAGE, Work::Short),
            _ if method.client_streaming() => (&usual, 0, Work::Stream),
            _ => (&usual, MAX_HEADER, Work::Short),
        };
        let service = match (service, method.name()) {
            (Contract::Keys(_), "Encrypt") => Contract::Encrypt(Service(Arc::clone(broker))),
            (Contract::Keys(_), "Decrypt") => Contract::Decrypt(Service(Arc::clone(broker))),
            (service, _) => service.clone(),
        };
        Method::Ours(Rpc {
            name: method.name().into(),
            tally: broker.metrics().calls(path),
            service,
            limit: *limit,
            answer,
            work,
        })
    };

    let mut methods = HashMap::new();
    let mut enter =
        |descriptors: &[u8],
         kind: &dyn Fn(&str, &ServiceDescriptorProto, &MethodDescriptorProto) -> Method| {
            let descriptors = FileDescriptorSet::decode(descriptors)
                .expect("descriptors are made with their code");
            for file in &descriptors.file {
                for service in &file.service {
                    for method in &service.method {
                        let path =
                            format!("{}.{}/{}", file.package(), service.name(), method.name());
                        let method = kind(&path, service, method);
                        methods.insert(format!("/{path}"), method);
                    }
                }
            }
        };
    enter(pb::DESCRIPTORS, &rpc);
    enter(tonic_health::pb::FILE_DESCRIPTOR_SET, &|_, _, _| {
        Method::Health
    });
    if listen.reflection {
        for descriptors in [
            tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
            tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET,
        ] {
            enter(descriptors, &|_, _, _| Method::Reflection);
        }
    }
    methods
}

/// What a page of 1,000 keys or of 100 grants takes at most, about, in bytes.
const MAX_PAGE: usize = 512 << 10;
/// Longest request that is about grants: with ten tokens, a principal and pairs, in bytes.
const MAX_CONTROL: usize = 128 << 10;
/// What an answer adds to the payload at most, in bytes: a header with its context and wrapped keys,
/// tags, and names.
const MAX_HEADER: usize = 16 << 10;
/// The same for the usual batch of 1,000 items, in bytes.
const MAX_HEADERS: usize = 1 << 20;
