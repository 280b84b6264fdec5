package main

import (
	"context"
	"crypto/x509"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"

	storev1 "keelson.dev/proto/keelson/store/v1"
	"keelson.dev/services/apiserver/internal/admission"
	"keelson.dev/services/apiserver/internal/authn"
	"keelson.dev/services/apiserver/internal/authz"
	"keelson.dev/services/apiserver/internal/bootstrap"
	"keelson.dev/services/apiserver/internal/fieldmanager"
	"keelson.dev/services/apiserver/internal/pipeline"
	"keelson.dev/services/apiserver/internal/pipeline/serviceaddress"
	"keelson.dev/services/apiserver/internal/resource"
	"keelson.dev/services/apiserver/internal/review"
	"keelson.dev/services/apiserver/internal/store"
	"keelson.dev/services/apiserver/internal/store/etcd"
	"keelson.dev/services/apiserver/internal/store/memory"
	"keelson.dev/services/apiserver/internal/token"
	"keelson.dev/services/internal/boot"
	"keelson.dev/services/internal/identity"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// operator is the common name of the certificate that cluster operators use; with
// it, etcd's own tools may connect where --etcd-listen-client opens the door.
const operator = "kubernetes-admin"

// startStore opens the store that the flags ask for.
func startStore(ctx context.Context, g *boot.Group, cfg *config, id *identity.Source, m *members) (store.Store, error) {
	switch {
	case m != nil && m.remote != nil:
		return m.store(g, storev1.Place_PLACE_LASTING), nil
	case cfg.memory:
		s := memory.New()
		g.OnStop("store", func(context.Context) error { s.Close(); return nil })
		return s, nil
	case len(cfg.etcdServers) > 0:
		remote := etcd.RemoteConfig{Endpoints: cfg.etcdServers}
		if strings.HasPrefix(cfg.etcdServers[0], "https://") {
			remote.TLS = id.ClientTLS()
		}
		s, err := etcd.Dial(ctx, remote)
		if err != nil {
			return nil, fmt.Errorf("--etcd-servers: %w", err)
		}
		g.OnStop("store", func(context.Context) error { s.Close(); return nil })
		g.Go("store upkeep", func(ctx context.Context) error { return s.Maintain(ctx, etcd.Retention{}) })
		return s, nil
	}
	files := etcd.TLSFiles{
		Cert: filepath.Join(cfg.Identity, identity.CertFile),
		Key:  filepath.Join(cfg.Identity, identity.KeyFile),
		CA:   filepath.Join(cfg.Identity, identity.CAFile),
	}
	embedded := etcd.EmbeddedConfig{
		Name: cfg.name, Dir: etcdDir(cfg), ListenClient: cfg.etcdListenClient, ClientTLS: files,
		ClientNames: []string{id.Name(), operator}, Peers: m.peerConfig(cfg),
	}
	s, err := etcd.Start(ctx, embedded)
	if err != nil {
		return nil, err
	}
	g.OnStop("store", func(context.Context) error { s.Close(); return nil })
	g.Go("store upkeep", func(ctx context.Context) error { return s.Maintain(ctx, etcd.Retention{}) })
	if m != nil {
		m.start(g, cfg, s)
	}
	return s, nil
}

// etcdDir is where the embedded etcd keeps its data.
func etcdDir(cfg *config) string { return filepath.Join(cfg.dataDir, "etcd") }

// users is how the apiserver knows who asks.
type users struct {
	*authn.Authenticator
	issuer *token.Issuer
	lookup admission.State
}

func newUsers(cfg *config, id *identity.Source, lookup admission.State) (*users, error) {
	issuer := token.NewIssuer(cfg.serviceAccountIssuer, nil, cfg.Keys)
	return &users{
		Authenticator: authn.New(authn.Config{
			Roots:  recent(time.Second, func() *x509.CertPool { return id.Current().Roots }),
			Tokens: issuer, Lookup: lookup,
		}),
		issuer: issuer, lookup: lookup,
	}, nil
}

// recent remembers what get returned for a while: asked for at each request, it
// would look at files each time.
func recent[T any](age time.Duration, get func() *T) func() *T {
	type seen struct {
		value *T
		until time.Time
	}
	var last atomic.Pointer[seen]
	return func() *T {
		now := time.Now()
		if s := last.Load(); s != nil && now.Before(s.until) {
			return s.value
		}
		s := &seen{get(), now.Add(age)}
		last.Store(s)
		return s.value
	}
}

// startAddresses keeps the ranges of Services; repaired is closed once they are
// as the Services in the store want them.
func startAddresses(g *boot.Group, cfg *config, st store.Store) (*serviceaddress.Allocator, <-chan struct{}, error) {
	a, err := serviceaddress.New(serviceaddress.Config{
		Store: st, Addresses: cfg.Services, FirstPort: cfg.FirstPort, LastPort: cfg.LastPort,
	})
	if err != nil {
		return nil, nil, boot.Invalid("%w", err)
	}
	repaired := make(chan struct{})
	g.Go("service addresses", func(ctx context.Context) error {
		return a.Run(ctx, func() { close(repaired) })
	})
	return a, repaired, nil
}

func newPipeline(cfg *config, id *identity.Source, table *resource.Table, lasting, transient pipeline.Place, rights *authz.Authorizers, u *users, addresses *serviceaddress.Allocator) *pipeline.Pipeline {
	tokens := &token.Requests{Issuer: u.issuer, Lookup: u.lookup}
	return pipeline.New(pipeline.Config{
		Table: table, Lasting: lasting, Transient: transient, Authorizer: rights,
		RulesChanged: rights.RBAC.Changed,
		Fields:       fieldmanager.New(table),
		Admission: admission.Default(admission.Config{
			State: u.lookup, Authorizer: rights, Escalation: rights, NodeOf: authz.NodeName, ReservedNames: []string{id.Name()},
			NotReadySeconds: cfg.notReadySeconds, UnreachableSeconds: cfg.unreachableSeconds,
			PodSecurity: cfg.podSecurity, Services: cfg.Services, DenyExternalIPs: cfg.denyExternalIPs,
		}),
		Hooks:   map[schema.GroupResource]pipeline.Hook{corev1.Resource("services"): addresses},
		Virtual: review.Actions(u.Authenticator, rights),
		Posts:   map[string]pipeline.Action{"token": issue(tokens)},
	})
}

// issue answers what is posted to serviceaccounts/token.
func issue(tokens *token.Requests) pipeline.Action {
	return func(ctx context.Context, t pipeline.Target, obj resource.Object, o pipeline.WriteOptions) (*pipeline.Outcome, error) {
		in, ok := obj.(*authenticationv1.TokenRequest)
		if !ok {
			return nil, fmt.Errorf("serviceaccounts/token was posted a %T", obj)
		}
		out, warnings, err := tokens.Create(ctx, t.Namespace, t.Name, in, o.DryRun)
		if err != nil {
			return nil, err
		}
		return &pipeline.Outcome{Other: out, Created: true, Warnings: warnings}, nil
	}
}

func newPresence(cfg *config, api pipeline.API, https net.Addr) (*bootstrap.Presence, error) {
	address, err := cfg.address(https)
	if err != nil {
		return nil, err
	}
	return &bootstrap.Presence{
		API: api, Name: cfg.name, Address: address, ServiceIP: cfg.Services.Masked().Addr().Next(),
		DNSIP: tenth(cfg.Services),
	}, nil
}

// tenth is a range's tenth address, which clusters keep for their DNS (kubeadm's
// convention); zero where the range is smaller.
func tenth(r netip.Prefix) netip.Addr {
	addr := r.Masked().Addr()
	for range 10 {
		addr = addr.Next()
	}
	if !r.Contains(addr) {
		return netip.Addr{}
	}
	return addr
}
