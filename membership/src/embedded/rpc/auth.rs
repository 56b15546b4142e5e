//! etcd's Auth service.
//!
//! The generated service cannot be implemented outside the client crate, which does not export
//! `AuthStatusRequest`. So requests are routed here by their path, with the client crate's messages
//! where it exports them and messages of the same wire form for that one call.

use std::convert::Infallible;
use std::future::{Future, ready};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use etcd_client::proto::{
    PbAuthDisableRequest, PbAuthDisableResponse, PbAuthEnableRequest, PbAuthEnableResponse,
    PbAuthRoleAddRequest, PbAuthRoleAddResponse, PbAuthRoleDeleteRequest, PbAuthRoleDeleteResponse,
    PbAuthRoleGetRequest, PbAuthRoleGetResponse, PbAuthRoleGrantPermissionRequest,
    PbAuthRoleGrantPermissionResponse, PbAuthRoleListRequest, PbAuthRoleListResponse,
    PbAuthRoleRevokePermissionRequest, PbAuthRoleRevokePermissionResponse, PbAuthUserAddRequest,
    PbAuthUserAddResponse, PbAuthUserChangePasswordRequest, PbAuthUserChangePasswordResponse,
    PbAuthUserDeleteRequest, PbAuthUserDeleteResponse, PbAuthUserGetRequest, PbAuthUserGetResponse,
    PbAuthUserGrantRoleRequest, PbAuthUserGrantRoleResponse, PbAuthUserListRequest,
    PbAuthUserListResponse, PbAuthUserRevokeRoleRequest, PbAuthUserRevokeRoleResponse,
    PbAuthenticateRequest, PbAuthenticateResponse, PbResponseHeader,
};
use prost::Message;
use tonic::body::Body;
use tonic::codegen::{Service, http};
use tonic::server::NamedService;
use tonic::{Request, Response, Status};

use super::super::auth::permission::{Kind, Permission};
use super::super::auth::{Auth, Proof};
use super::super::error::Refusal;
use super::super::store::Store;
use super::super::{check, limits};
use super::caller::caller;
use super::unary::unary;

/// How often a login is tried anew because the user changed while its password was checked.
const LOGIN_TRIES: usize = 3;

#[derive(Clone, Copy, PartialEq, Message)]
struct AuthStatusRequest {}

#[derive(Clone, PartialEq, Message)]
struct AuthStatusResponse {
    #[prost(message, optional, tag = "1")]
    header: Option<PbResponseHeader>,
    #[prost(bool, tag = "2")]
    enabled: bool,
    #[prost(uint64, tag = "3")]
    auth_revision: u64,
}

#[derive(Clone)]
pub(crate) struct AuthService {
    store: Arc<Store>,
}

impl AuthService {
    pub(crate) fn new(store: Arc<Store>) -> Self {
        Self { store }
    }

    fn header(&self) -> Option<PbResponseHeader> {
        Some(self.store.current_header())
    }

    /// A change by an administrator.
    async fn change<T>(
        &self,
        request: &Request<T>,
        change: impl FnOnce(&mut Auth) -> Result<(), Refusal> + Send + 'static,
    ) -> Result<Option<PbResponseHeader>, Status> {
        let who = caller(&self.store, request)?;
        let write = self.store.write(move |txn| {
            txn.auth().admin(&who)?;
            txn.change_auth(change)
        });
        write.await?;
        Ok(self.header())
    }

    async fn status(
        self,
        request: Request<AuthStatusRequest>,
    ) -> Result<Response<AuthStatusResponse>, Status> {
        let auth = self.store.auth();
        auth.admin(&caller(&self.store, &request)?)?;
        Ok(Response::new(AuthStatusResponse {
            header: self.header(),
            enabled: auth.enabled(),
            auth_revision: auth.revision(),
        }))
    }

    async fn authenticate(
        self,
        request: Request<PbAuthenticateRequest>,
    ) -> Result<Response<PbAuthenticateResponse>, Status> {
        let PbAuthenticateRequest { name, password } = request.into_inner();
        for _ in 0..LOGIN_TRIES {
            let auth = self.store.auth();
            if !auth.enabled() {
                return Err(Refusal::AuthNotEnabled.into());
            }
            let hash = match auth.proof(&name) {
                Some(Proof::Certificate) => return Err(Refusal::PasswordNotUsed.into()),
                Some(Proof::Password(hash)) => Some(hash.clone()),
                Some(Proof::Nothing) | None => None,
            };
            if !self.store.passwords.check(password.clone(), hash).await? {
                tracing::warn!(user = ?shown(&name), "a login with a wrong name or password");
                return Err(Refusal::AuthFailed.into());
            }
            // The password may have been changed while it was checked.
            if self.store.auth().honours(&name, auth.revision()) {
                let token = self.store.give_token(&name, auth.revision());
                return Ok(Response::new(PbAuthenticateResponse { header: self.header(), token }));
            }
        }
        Err(Refusal::AuthFailed.into())
    }

    async fn user_add(
        self,
        request: Request<PbAuthUserAddRequest>,
    ) -> Result<Response<PbAuthUserAddResponse>, Status> {
        // Before the costly part.
        self.store.auth().admin(&caller(&self.store, &request)?)?;
        let PbAuthUserAddRequest { name, password, options, .. } = request.get_ref().clone();
        let proof = if options.is_some_and(|options| options.no_password) {
            Proof::Certificate
        } else {
            Proof::Password(self.store.passwords.hash(password).await?)
        };
        let header = self.change(&request, move |auth| auth.user_add(&name, proof)).await?;
        Ok(Response::new(PbAuthUserAddResponse { header }))
    }

    async fn user_change_password(
        self,
        request: Request<PbAuthUserChangePasswordRequest>,
    ) -> Result<Response<PbAuthUserChangePasswordResponse>, Status> {
        self.store.auth().admin(&caller(&self.store, &request)?)?;
        let PbAuthUserChangePasswordRequest { name, password, .. } = request.get_ref().clone();
        let proof = if password.is_empty() {
            Proof::Nothing
        } else {
            Proof::Password(self.store.passwords.hash(password).await?)
        };
        let header = self.change(&request, move |auth| auth.user_change(&name, proof)).await?;
        Ok(Response::new(PbAuthUserChangePasswordResponse { header }))
    }

    async fn role_get(
        self,
        request: Request<PbAuthRoleGetRequest>,
    ) -> Result<Response<PbAuthRoleGetResponse>, Status> {
        let who = caller(&self.store, &request)?;
        let granted = self.store.auth().role(&who, &request.get_ref().role)?;
        let mut response =
            PbAuthRoleGetResponse { header: self.header(), ..PbAuthRoleGetResponse::default() };
        for Permission { kind, key, range_end } in granted {
            // The message's type has no name outside its crate; this one has it as a field.
            let mut request = PbAuthRoleGrantPermissionRequest::default();
            let permission = request.perm.get_or_insert_default();
            permission.perm_type = kind.number();
            permission.key = key;
            permission.range_end = range_end;
            response.perm.extend(request.perm);
        }
        Ok(Response::new(response))
    }

    async fn role_grant(
        self,
        request: Request<PbAuthRoleGrantPermissionRequest>,
    ) -> Result<Response<PbAuthRoleGrantPermissionResponse>, Status> {
        let PbAuthRoleGrantPermissionRequest { name, perm } = request.get_ref().clone();
        let header = self
            .change(&request, move |auth| {
                let permission = perm.ok_or(Refusal::PermissionMissing)?;
                let kind = Kind::from_number(permission.perm_type);
                let kind = kind.ok_or(Refusal::InvalidAuthManagement)?;
                check::check_size(permission.key.len().saturating_add(permission.range_end.len()))?;
                let (key, range_end) = (permission.key, permission.range_end);
                auth.role_grant(&name, Permission { kind, key, range_end })
            })
            .await?;
        Ok(Response::new(PbAuthRoleGrantPermissionResponse { header }))
    }
}

/// A name for the log, however long it came; quoted there, since a stranger has written it.
fn shown(name: &str) -> String {
    name.chars().take(64).collect()
}

impl NamedService for AuthService {
    const NAME: &'static str = "etcdserverpb.Auth";
}

impl Service<http::Request<Body>> for AuthService {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, http: http::Request<Body>) -> Self::Future {
        type Grant = PbAuthUserGrantRoleRequest;
        type Revoke = PbAuthUserRevokeRoleRequest;
        type RevokePermission = PbAuthRoleRevokePermissionRequest;
        const LARGEST: usize = limits::REQUEST_BYTES + limits::REQUEST_OVERHEAD_BYTES;
        let s = self.clone();
        let method = http.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
        match method.as_str() {
            "Authenticate" => unary(http, LARGEST, move |r| s.authenticate(r)),
            "AuthStatus" => unary(http, LARGEST, move |r| s.status(r)),
            "UserAdd" => unary(http, LARGEST, move |r| s.user_add(r)),
            "UserChangePassword" => unary(http, LARGEST, move |r| s.user_change_password(r)),
            "RoleGet" => unary(http, LARGEST, move |r| s.role_get(r)),
            "RoleGrantPermission" => unary(http, LARGEST, move |r| s.role_grant(r)),
            "AuthEnable" => unary(http, LARGEST, async move |r: Request<PbAuthEnableRequest>| {
                let header = s.change(&r, Auth::enable).await?;
                Ok(Response::new(PbAuthEnableResponse { header }))
            }),
            "AuthDisable" => unary(http, LARGEST, async move |r: Request<PbAuthDisableRequest>| {
                let disable = |auth: &mut Auth| {
                    auth.disable();
                    Ok(())
                };
                let header = s.change(&r, disable).await?;
                Ok(Response::new(PbAuthDisableResponse { header }))
            }),
            "UserDelete" => {
                unary(http, LARGEST, async move |r: Request<PbAuthUserDeleteRequest>| {
                    let name = r.get_ref().name.clone();
                    let header = s.change(&r, move |auth| auth.user_delete(&name)).await?;
                    Ok(Response::new(PbAuthUserDeleteResponse { header }))
                })
            }
            "UserGet" => unary(http, LARGEST, async move |r: Request<PbAuthUserGetRequest>| {
                let roles = s.store.auth().user(&caller(&s.store, &r)?, &r.get_ref().name)?;
                Ok(Response::new(PbAuthUserGetResponse { header: s.header(), roles }))
            }),
            "UserList" => unary(http, LARGEST, async move |r: Request<PbAuthUserListRequest>| {
                let auth = s.store.auth();
                auth.admin(&caller(&s.store, &r)?)?;
                let users = auth.users();
                Ok(Response::new(PbAuthUserListResponse { header: s.header(), users }))
            }),
            "UserGrantRole" => unary(http, LARGEST, async move |r: Request<Grant>| {
                let Grant { user, role } = r.get_ref().clone();
                let header = s.change(&r, move |auth| auth.user_grant(&user, &role)).await?;
                Ok(Response::new(PbAuthUserGrantRoleResponse { header }))
            }),
            "UserRevokeRole" => unary(http, LARGEST, async move |r: Request<Revoke>| {
                let Revoke { name, role } = r.get_ref().clone();
                let header = s.change(&r, move |auth| auth.user_revoke(&name, &role)).await?;
                Ok(Response::new(PbAuthUserRevokeRoleResponse { header }))
            }),
            "RoleAdd" => unary(http, LARGEST, async move |r: Request<PbAuthRoleAddRequest>| {
                let name = r.get_ref().name.clone();
                let header = s.change(&r, move |auth| auth.role_add(&name)).await?;
                Ok(Response::new(PbAuthRoleAddResponse { header }))
            }),
            "RoleDelete" => {
                unary(http, LARGEST, async move |r: Request<PbAuthRoleDeleteRequest>| {
                    let role = r.get_ref().role.clone();
                    let header = s.change(&r, move |auth| auth.role_delete(&role)).await?;
                    Ok(Response::new(PbAuthRoleDeleteResponse { header }))
                })
            }
            "RoleList" => unary(http, LARGEST, async move |r: Request<PbAuthRoleListRequest>| {
                let auth = s.store.auth();
                auth.admin(&caller(&s.store, &r)?)?;
                let roles = auth.roles();
                Ok(Response::new(PbAuthRoleListResponse { header: s.header(), roles }))
            }),
            "RoleRevokePermission" => {
                unary(http, LARGEST, async move |r: Request<RevokePermission>| {
                    let RevokePermission { role, key, range_end } = r.get_ref().clone();
                    let revoke = move |auth: &mut Auth| auth.role_revoke(&role, &key, &range_end);
                    let header = s.change(&r, revoke).await?;
                    Ok(Response::new(PbAuthRoleRevokePermissionResponse { header }))
                })
            }
            _ => {
                let refusal = Status::unimplemented("the embedded store does not know this method");
                Box::pin(ready(Ok(refusal.into_http())))
            }
        }
    }
}
