package main

import (
	"context"
	"crypto/x509"
	"fmt"
	"net"
	"net/netip"
	"sync/atomic"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metricsv1beta1 "k8s.io/metrics/pkg/apis/metrics/v1beta1"

	"keelson.dev/services/apiserver/internal/admission"
	"keelson.dev/services/apiserver/internal/authn"
	"keelson.dev/services/apiserver/internal/authz"
	"keelson.dev/services/apiserver/internal/bootstrap"
	"keelson.dev/services/apiserver/internal/fieldmanager"
	"keelson.dev/services/apiserver/internal/nodeusage"
	"keelson.dev/services/apiserver/internal/pipeline"
	"keelson.dev/services/apiserver/internal/pipeline/serviceaddress"
	"keelson.dev/services/apiserver/internal/resource"
	"keelson.dev/services/apiserver/internal/review"
	"keelson.dev/services/apiserver/internal/store"
	"keelson.dev/services/apiserver/internal/token"
	"keelson.dev/services/internal/boot"
	"keelson.dev/services/internal/identity"
)

// api is what both fronts serve: who the caller is, what it may do, and the pipeline.
type api struct {
	rights   *authz.Authorizers
	users    *users
	pipeline *pipeline.Pipeline
	// synced is closed once rights follow the cluster's rules.
	synced <-chan struct{}
	// repaired is closed once the ranges of Services match the stored Services.
	repaired <-chan struct{}
}

// startAPI makes the pipeline over the stores and caches.
func startAPI(g *boot.Group, cfg *config, id *identity.Source, st *state) (*api, error) {
	rights := authz.New()
	synced := make(chan struct{})
	g.Go("authorization", func(ctx context.Context) error {
		if !closed(ctx, st.lasting.Cache.Ready()) {
			return nil
		}
		return rights.Follow(ctx, st.table, st.lasting.Cache, func() { close(synced) })
	})
	users := newUsers(cfg, id, pipeline.NewState(st.table, st.lasting.Cache, st.lasting.Store))
	addresses, repaired, err := startAddresses(g, cfg, st.lasting.Store)
	if err != nil {
		return nil, err
	}
	p := newPipeline(cfg, id, st, rights, users, addresses)
	g.Go("rights of watches", p.Recheck)
	return &api{rights: rights, users: users, pipeline: p, synced: synced, repaired: repaired}, nil
}

// users authenticates callers and issues service account tokens.
type users struct {
	*authn.Authenticator
	issuer *token.Issuer
	lookup admission.State
}

func newUsers(cfg *config, id *identity.Source, lookup admission.State) *users {
	issuer := token.NewIssuer(cfg.serviceAccountIssuer, nil, cfg.Keys)
	return &users{
		Authenticator: authn.New(authn.Config{
			Roots:  recent(time.Second, func() *x509.CertPool { return id.Current().Roots }),
			Tokens: issuer, Lookup: lookup,
		}),
		issuer: issuer, lookup: lookup,
	}
}

// recent caches the result of get for age, because get reads files and is called for every
// request.
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

// startAddresses allocates the addresses and node ports of Services. repaired is closed once
// the allocations match the stored Services.
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

// newPipeline assembles the pipeline.
func newPipeline(cfg *config, id *identity.Source, st *state, rights *authz.Authorizers, u *users, addresses *serviceaddress.Allocator) *pipeline.Pipeline {
	actions := review.Actions(u.Authenticator, rights)
	actions[resource.IssueToken] = issue(&token.Requests{Issuer: u.issuer, Lookup: u.lookup})
	st.table.ByResource(corev1.SchemeGroupVersion.WithResource("services")).Claimer = addresses
	measured := nodeusage.New(nodeusage.Config{Ask: st.tunnels.Measure, State: u.lookup})
	st.table.ByResource(metricsv1beta1.SchemeGroupVersion.WithResource("nodes")).Source = nodeusage.Nodes{Cache: measured}
	st.table.ByResource(metricsv1beta1.SchemeGroupVersion.WithResource("pods")).Source = nodeusage.Pods{Cache: measured}
	return pipeline.New(pipeline.Config{
		Table: st.table, Lasting: st.lasting, Transient: st.transient, Authorizer: rights,
		RulesChanged: rights.RBAC.Changed,
		Fields:       fieldmanager.New(st.table),
		Admission: admission.Default(admission.Config{
			State: u.lookup, Authorizer: rights, Escalation: rights, NodeOf: authz.NodeName, ReservedNames: []string{id.Name()},
			NotReadySeconds: cfg.notReadySeconds, UnreachableSeconds: cfg.unreachableSeconds,
			PodSecurity: cfg.podSecurity, Services: cfg.Services, DenyExternalIPs: cfg.denyExternalIPs,
		}),
		Actions: actions,
	})
}

// issue handles creations of serviceaccounts/token.
func issue(tokens *token.Requests) pipeline.Action {
	return func(ctx context.Context, t pipeline.Target, obj resource.Object, o pipeline.WriteOptions) (*pipeline.Outcome, error) {
		in, ok := obj.(*authenticationv1.TokenRequest)
		if !ok {
			return nil, fmt.Errorf("serviceaccounts/token: expected a TokenRequest, got %T", obj)
		}
		out, warnings, err := tokens.Create(ctx, t.Namespace, t.Name, in, o.DryRun)
		if err != nil {
			return nil, err
		}
		return &pipeline.Outcome{Other: out, Created: true, Warnings: warnings}, nil
	}
}

// newPresence keeps this apiserver among the endpoints of the Service kubernetes; https is
// the address of its HTTPS listener.
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

// tenth returns the tenth address of r, which clusters reserve for their DNS (kubeadm's
// convention), or the zero Addr if r is smaller.
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
