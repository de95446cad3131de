//! The RPCs, a few lines each: parse, act, render. What all have in common is in `serve`.

use std::sync::Arc;

use bytes::Bytes;
use tonic::Request;
use tonic::Response;
use tonic::Status;
use tonic::Streaming;

use crate::audit::Failure;
use crate::broker::AdminCall;
use crate::broker::Broker;
use crate::broker::Call;
use crate::broker::Operator;
use crate::broker::stream::Begun;
use crate::datakeys::Patience;
use crate::error::Error;
use crate::grpc::batch;
use crate::grpc::convert;
use crate::grpc::convert::Decrypt;
use crate::grpc::convert::Encrypt;
use crate::grpc::convert::GenerateDataKey;
use crate::grpc::convert::ReEncrypt;
use crate::grpc::convert::Verified;
use crate::grpc::convert::stream::DecryptStream;
use crate::grpc::convert::stream::EncryptStream;
use crate::grpc::convert::stream::Stream;
use crate::grpc::convert::stream::not_start;
use crate::grpc::driver::step_aside;
use crate::grpc::pb;
use crate::grpc::pb::key_broker_service_server::KeyBrokerService;
use crate::grpc::status::status;
use crate::grpc::stream;
use crate::grpc::stream::Answers;
use crate::grpc::stream::Lasting;
use crate::grpc::witness::Passage;
use crate::policy::Action;

/// The service over a broker.
#[derive(Clone)]
pub(super) struct Service(pub(super) Arc<Broker>);

impl Service {
    /// [`KeyBrokerService::encrypt`] for a caller that has `passed`; that it failed is not noted.
    pub(super) async fn encrypt_for(
        &self,
        passed: &Passage,
        patience: Arc<Patience>,
        request: pb::EncryptRequest,
    ) -> Result<pb::EncryptResponse, Error> {
        self.act(passed, patience, request, encrypt).await
    }

    /// [`KeyBrokerService::decrypt`] for a caller that has `passed`; that it failed is not noted.
    pub(super) async fn decrypt_for(
        &self,
        passed: &Passage,
        patience: Arc<Patience>,
        request: pb::DecryptRequest,
    ) -> Result<pb::DecryptResponse, Error> {
        self.act(passed, patience, request, decrypt).await
    }

    /// Has the caller pay for the request, and runs the call.
    async fn act<Q: prost::Message, P>(
        &self,
        passed: &Passage,
        patience: Arc<Patience>,
        message: Q,
        run: impl AsyncFnOnce(Call<'_>, Q) -> Result<P, Error>,
    ) -> Result<P, Error> {
        let length = message.encoded_len();
        if length > LONG {
            step_aside().await;
        }
        let call = self.0.call(&passed.visitor, passed.notes.clone(), patience);
        call.pay_for_bytes(length);
        run(call, message).await
    }

    /// Has the caller pay for the request, runs the call, and notes why it failed.
    pub(super) async fn serve<Q: prost::Message, P>(
        &self,
        request: Request<Q>,
        run: impl AsyncFnOnce(Call<'_>, Q) -> Result<P, Error>,
    ) -> Result<Response<P>, Status> {
        let (_, mut extensions, message) = request.into_parts();
        let passed = (
            extensions.remove::<Passage>(),
            extensions.remove::<Arc<Patience>>(),
        );
        let (Some(passage), Some(patience)) = passed else {
            return Err(Status::internal("a call that did not pass the witness"));
        };
        let outcome = self.act(&passage, patience, message, run).await;
        outcome
            .map(Response::new)
            .map_err(|error| refuse(&error, &passage))
    }
}

impl Service {
    /// Runs an operator's call, and notes why it failed.
    pub(super) async fn administer<Q, P>(
        &self,
        request: Request<Q>,
        run: impl AsyncFnOnce(AdminCall<'_>, Q) -> Result<P, Error>,
    ) -> Result<Response<P>, Status> {
        let (_, mut extensions, message) = request.into_parts();
        let passed = (
            extensions.remove::<Passage<Operator>>(),
            extensions.remove::<Arc<Patience>>(),
        );
        let (Some(passage), Some(patience)) = passed else {
            return Err(Status::internal("a call that did not pass the witness"));
        };
        let notes = passage.notes.clone();
        let call = self
            .0
            .admin_call(passage.visitor.clone(), notes, patience.until());
        let outcome = run(call, message).await;
        outcome
            .map(Response::new)
            .map_err(|error| refuse(&error, &passage))
    }
}

impl Service {
    /// Has `begin` read what it needs and begin the stream, and lets that go on by itself.
    async fn serve_stream<S: Stream>(
        &self,
        request: Request<Streaming<S::Request>>,
        begin: impl AsyncFnOnce(
            Call<'_>,
            S::Start,
            &mut Streaming<S::Request>,
        ) -> Result<(Begun, Verified, Bytes), Error>,
    ) -> Result<Response<Answers<S::Response>>, Status> {
        let (_, mut extensions, mut requests) = request.into_parts();
        let passed = (
            extensions.remove::<Passage>(),
            extensions.remove::<Lasting>(),
            extensions.remove::<Arc<Patience>>(),
        );
        let (Some(passage), Some(lasting), Some(patience)) = passed else {
            return Err(Status::internal("a call that did not pass the witness"));
        };
        let begun = async {
            let first = stream::message(&mut requests).await?;
            let start = S::start(first.ok_or_else(not_start)?)?;
            let notes = passage.notes.clone();
            let call = self.0.call(&passage.visitor, notes, patience);
            begin(call, start, &mut requests).await
        };
        match begun.await {
            Ok((begun, verified, input)) => {
                let broker = Arc::clone(&self.0);
                Ok(Response::new(stream::go_on::<S>(
                    broker, passage, lasting, begun, verified, input, requests,
                )))
            }
            Err(error) => Err(refuse(&error, &passage)),
        }
    }
}

async fn encrypt(
    call: Call<'_>,
    request: pb::EncryptRequest,
) -> Result<pb::EncryptResponse, Error> {
    let request = Encrypt::try_from(request)?;
    let verified = request.verified();
    let sealed = call.encrypt(request.to, &request.plaintext).await?;
    Ok(Encrypt::respond(verified, sealed))
}

async fn decrypt(
    call: Call<'_>,
    request: pb::DecryptRequest,
) -> Result<pb::DecryptResponse, Error> {
    let request = Decrypt::try_from(request)?;
    let verified = request.verified();
    let opened = call.decrypt(request.from, &request.ciphertext).await?;
    Ok(Decrypt::respond(verified, opened))
}

/// Notes why the call fails, and says it to the client.
fn refuse<V>(error: &Error, passage: &Passage<V>) -> Status {
    passage
        .notes
        .add(|record| record.failure = Some(failure(error)));
    status(error, &passage.request_id)
}

/// The id of the call, for the statuses of its items.
fn request_id<Q>(request: &Request<Q>) -> Arc<str> {
    let passage = request.extensions().get::<Passage>();
    passage
        .map(|passage| Arc::clone(&passage.request_id))
        .unwrap_or_default()
}

/// The record's words for `error`: more than the client is told.
pub(super) fn failure(error: &Error) -> Failure {
    let cause = match error {
        Error::Unverified(why) => why.label().to_owned(),
        other => other.to_string(),
    };
    Failure {
        reason: error.reason(),
        cause,
    }
}

#[tonic::async_trait]
impl KeyBrokerService for Service {
    async fn encrypt(
        &self,
        request: Request<pb::EncryptRequest>,
    ) -> Result<Response<pb::EncryptResponse>, Status> {
        self.serve(request, encrypt).await
    }

    async fn decrypt(
        &self,
        request: Request<pb::DecryptRequest>,
    ) -> Result<Response<pb::DecryptResponse>, Status> {
        self.serve(request, decrypt).await
    }

    async fn encrypt_batch(
        &self,
        request: Request<pb::EncryptBatchRequest>,
    ) -> Result<Response<pb::EncryptBatchResponse>, Status> {
        let request_id = request_id(&request);
        self.serve(request, async |call, request| {
            let (items, verified) = convert::plaintexts(request);
            let answers = call.encrypt_batch(items).await?;
            let (results, tally) =
                batch::results(answers, verified, &request_id, Encrypt::respond_item);
            call.note_items(tally);
            Ok(pb::EncryptBatchResponse { results })
        })
        .await
    }

    async fn decrypt_batch(
        &self,
        request: Request<pb::DecryptBatchRequest>,
    ) -> Result<Response<pb::DecryptBatchResponse>, Status> {
        let request_id = request_id(&request);
        self.serve(request, async |call, request| {
            let (items, verified) = convert::ciphertexts(request);
            let answers = call.decrypt_batch(items).await?;
            let (results, tally) =
                batch::results(answers, verified, &request_id, Decrypt::respond_item);
            call.note_items(tally);
            Ok(pb::DecryptBatchResponse { results })
        })
        .await
    }

    async fn re_encrypt(
        &self,
        request: Request<pb::ReEncryptRequest>,
    ) -> Result<Response<pb::ReEncryptResponse>, Status> {
        self.serve(request, async |call, request| {
            let request = ReEncrypt::try_from(request)?;
            let verified = request.verified();
            let (opened, sealed) = call
                .re_encrypt(request.from, &request.ciphertext, request.to)
                .await?;
            Ok(ReEncrypt::respond(verified, &opened, sealed))
        })
        .await
    }

    async fn generate_data_key(
        &self,
        request: Request<pb::GenerateDataKeyRequest>,
    ) -> Result<Response<pb::GenerateDataKeyResponse>, Status> {
        self.serve(request, async |call, request| {
            let request = GenerateDataKey::try_from(request)?;
            let verified = request.verified();
            let (plaintext, sealed) = call
                .generate_data_key(Action::GenerateDataKey, request.to, request.length)
                .await?;
            Ok(GenerateDataKey::respond(verified, plaintext, sealed))
        })
        .await
    }

    async fn generate_data_key_without_plaintext(
        &self,
        request: Request<pb::GenerateDataKeyWithoutPlaintextRequest>,
    ) -> Result<Response<pb::GenerateDataKeyWithoutPlaintextResponse>, Status> {
        self.serve(request, async |call, request| {
            let request = GenerateDataKey::try_from(request)?;
            let verified = request.verified();
            let action = Action::GenerateDataKeyWithoutPlaintext;
            let (_, sealed) = call
                .generate_data_key(action, request.to, request.length)
                .await?;
            Ok(GenerateDataKey::respond_without_plaintext(verified, sealed))
        })
        .await
    }

    type EncryptStreamStream = Answers<pb::EncryptStreamResponse>;

    async fn encrypt_stream(
        &self,
        request: Request<Streaming<pb::EncryptStreamRequest>>,
    ) -> Result<Response<Self::EncryptStreamStream>, Status> {
        self.serve_stream::<EncryptStream>(request, async |call, start, _| {
            let begun = call.encrypt_stream(start.to, start.declared).await?;
            Ok((begun, start.verified, Bytes::new()))
        })
        .await
    }

    type DecryptStreamStream = Answers<pb::DecryptStreamResponse>;

    async fn decrypt_stream(
        &self,
        request: Request<Streaming<pb::DecryptStreamRequest>>,
    ) -> Result<Response<Self::DecryptStreamStream>, Status> {
        self.serve_stream::<DecryptStream>(request, async |call, start, requests| {
            let mut header = call.decrypt_stream(start.from).await?;
            loop {
                let Some(request) = stream::message(requests).await? else {
                    return Err(call.without_end(&header).await);
                };
                let mut chunk = DecryptStream::chunk(request)?;
                if let Some(begun) = call.take_header(&mut header, &mut chunk).await? {
                    return Ok((begun, start.verified, chunk));
                }
            }
        })
        .await
    }

    async fn generate_random(
        &self,
        request: Request<pb::GenerateRandomRequest>,
    ) -> Result<Response<pb::GenerateRandomResponse>, Status> {
        self.serve(request, async |call, request| {
            let length = convert::random_length(request)?;
            Ok(convert::random(call.generate_random(length)?))
        })
        .await
    }

    async fn describe_key(
        &self,
        request: Request<pb::DescribeKeyRequest>,
    ) -> Result<Response<pb::DescribeKeyResponse>, Status> {
        self.serve(request, async |call, request| {
            let pb::DescribeKeyRequest { name, grant_tokens } = request;
            let key = convert::key(&call.describe_key(&name, &grant_tokens).await?);
            Ok(pb::DescribeKeyResponse { key: Some(key) })
        })
        .await
    }

    async fn list_keys(
        &self,
        request: Request<pb::ListKeysRequest>,
    ) -> Result<Response<pb::ListKeysResponse>, Status> {
        self.serve(request, async |call, request| {
            let pb::ListKeysRequest {
                parent,
                page_size,
                page_token,
            } = request;
            Ok(convert::page(&call.list_keys(
                &parent,
                page_size,
                &page_token,
            )?))
        })
        .await
    }
}

/// A request of more bytes than this is work for a task of its own: about 100 µs of sealing.
const LONG: usize = 256 << 10;
