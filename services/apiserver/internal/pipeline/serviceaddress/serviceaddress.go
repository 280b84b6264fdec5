// Package serviceaddress allocates the cluster IPs and node ports of Services.
//
// An address belongs to the Service whose request created the IPAddress object, which has
// Kubernetes' own key. Node ports are bits of Kubernetes' own RangeAllocation, which is written
// conditionally. No two Services therefore share one, however many apiservers there are and
// whenever they fail; repair releases what a failed one has left behind.
//
// The state that this package keeps in memory is a hint that saves attempts. It must never be
// treated as authoritative: only the store is.
package serviceaddress

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"keelson.dev/services/apiserver/internal/kind/core"
	"keelson.dev/services/apiserver/internal/resource"
	"keelson.dev/services/apiserver/internal/store"
)

// Config configures an Allocator.
type Config struct {
	Store store.Store
	// Addresses is the range of cluster IPs, IPv4.
	Addresses netip.Prefix
	// FirstPort and LastPort are the range of node ports, inclusive.
	FirstPort, LastPort int32
	Now                 func() time.Time
	Log                 *slog.Logger
}

// Allocator allocates and releases addresses and ports. Run repairs the allocations.
type Allocator struct {
	cfg       Config
	addresses *addresses
	ports     *ports
}

// New returns an allocator.
func New(cfg Config) (*Allocator, error) {
	if !cfg.Addresses.IsValid() || !cfg.Addresses.Addr().Is4() || cfg.Addresses.Bits() > 30 || cfg.Addresses.Bits() < 8 {
		return nil, fmt.Errorf("range of cluster IPs %s: want an IPv4 range of 4 to 16 million addresses", cfg.Addresses)
	}
	if cfg.FirstPort < 1 || cfg.LastPort > 65535 || cfg.FirstPort > cfg.LastPort {
		return nil, fmt.Errorf("range of node ports %d-%d: want two ports in order", cfg.FirstPort, cfg.LastPort)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	return &Allocator{
		cfg:       cfg,
		addresses: newAddresses(cfg),
		ports:     &ports{store: cfg.Store, first: cfg.FirstPort, last: cfg.LastPort},
	}, nil
}

// releaseTime bounds a release after the request that allocated.
const releaseTime = 5 * time.Second

// claim is what one write of a Service has allocated and will release.
type claim struct {
	allocator *Allocator
	service   *corev1.Service
	// taken is released if the write fails, and left if it succeeds.
	takenAddress, leftAddress string
	takenPorts, leftPorts     []int32
}

// Claim implements pipeline.Hook.
func (a *Allocator) Claim(ctx context.Context, obj, old resource.Object, dryRun bool) (func(bool), error) {
	svc, ok := obj.(*corev1.Service)
	if !ok {
		return nil, fmt.Errorf("service addresses: expected a Service, got %T", obj)
	}
	was, _ := old.(*corev1.Service)
	if errs := core.ValidateClusterIPs(svc); len(errs) > 0 {
		// Before anything is allocated, because inconsistent fields are never replaced.
		return nil, apierrors.NewInvalid(serviceKind, svc.Name, errs)
	}
	c := &claim{allocator: a, service: svc}
	err := a.claimAddress(ctx, c, svc, was, dryRun)
	if err == nil {
		err = a.claimPorts(ctx, c, svc, was, dryRun)
	}
	if dryRun {
		return nil, err
	}
	return c.finish, err
}

func (c *claim) finish(ok bool) {
	address, ports := c.takenAddress, c.takenPorts
	if ok {
		address, ports = c.leftAddress, c.leftPorts
	}
	if address == "" && len(ports) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), releaseTime)
	defer cancel()
	c.allocator.release(ctx, c.service, address, ports)
}

// Released implements pipeline.Hook, for a deleted Service.
func (a *Allocator) Released(ctx context.Context, old resource.Object) {
	svc, ok := old.(*corev1.Service)
	if !ok {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), releaseTime)
	defer cancel()
	a.release(ctx, svc, addressOf(svc), portsOf(svc))
}

// release releases an address and ports. Repair handles what fails.
func (a *Allocator) release(ctx context.Context, svc *corev1.Service, address string, ports []int32) {
	if address != "" {
		if err := a.addresses.release(ctx, address, svc); err != nil {
			a.cfg.Log.WarnContext(ctx, "cannot release a cluster IP; repair will", "error", err, "ip", address)
		}
	}
	if len(ports) > 0 {
		if err := a.ports.release(ctx, ports); err != nil {
			a.cfg.Log.WarnContext(ctx, "cannot release node ports; repair will", "error", err, "ports", ports)
		}
	}
}

// addressOf returns the cluster IP that a Service uses, or "".
func addressOf(svc *corev1.Service) string {
	if svc == nil || !core.NeedsClusterIP(svc) {
		return ""
	}
	return svc.Spec.ClusterIP
}

func (a *Allocator) claimAddress(ctx context.Context, c *claim, svc, was *corev1.Service, dryRun bool) error {
	had := addressOf(was)
	if !core.NeedsClusterIP(svc) {
		c.leftAddress = had
		return nil
	}
	want := svc.Spec.ClusterIP
	if want != "" && want == had {
		return nil
	}
	if had != "" && want != "" {
		return nil // validation refuses a changed address
	}
	if err := checkFamilies(svc); err != nil {
		return err
	}
	got, err := a.addresses.claim(ctx, want, svc, dryRun)
	if err != nil {
		var refused *refusedError
		if errors.As(err, &refused) {
			return invalid(svc, field.Invalid(field.NewPath("spec", "clusterIPs"), svc.Spec.ClusterIPs, refused.text))
		}
		return fmt.Errorf("failed to allocate a serviceIP: %w", err)
	}
	c.takenAddress = got
	svc.Spec.ClusterIP, svc.Spec.ClusterIPs = got, []string{got}
	return nil
}

// checkFamilies refuses what a network with a single address family cannot provide.
func checkFamilies(svc *corev1.Service) error {
	spec := field.NewPath("spec")
	if p := svc.Spec.IPFamilyPolicy; p != nil && *p == corev1.IPFamilyPolicyRequireDualStack {
		return invalid(svc, field.Invalid(spec.Child("ipFamilyPolicy"), *p, "this cluster is not configured for dual-stack services"))
	}
	for i, f := range svc.Spec.IPFamilies {
		if f != corev1.IPv4Protocol {
			return invalid(svc, field.Invalid(spec.Child("ipFamilies").Index(i), f, "not configured on this cluster"))
		}
	}
	return nil
}

// portsOf returns the node ports that a Service uses, without duplicates.
func portsOf(svc *corev1.Service) []int32 {
	if svc == nil {
		return nil
	}
	var out []int32
	add := func(n int32) {
		if n != 0 && !slices.Contains(out, n) {
			out = append(out, n)
		}
	}
	if svc.Spec.Type == corev1.ServiceTypeNodePort || svc.Spec.Type == corev1.ServiceTypeLoadBalancer {
		for i := range svc.Spec.Ports {
			add(svc.Spec.Ports[i].NodePort)
		}
	}
	if core.NeedsHealthCheckNodePort(svc) {
		add(svc.Spec.HealthCheckNodePort)
	}
	return out
}

func (a *Allocator) claimPorts(ctx context.Context, c *claim, svc, was *corev1.Service, dryRun bool) error {
	shareNodePorts(svc)
	had := portsOf(was)
	asked := portsOf(svc)
	var fixed []int32 // requested and not allocated yet
	for _, n := range asked {
		if !slices.Contains(had, n) {
			fixed = append(fixed, n)
		}
	}
	blanks := blankPorts(svc)
	if len(fixed) > 0 || len(blanks) > 0 {
		got, err := a.ports.claim(ctx, fixed, groups(blanks), dryRun)
		if err != nil {
			var refused *refusedError
			if errors.As(err, &refused) {
				return invalid(svc, field.Invalid(portPath(svc, refused.port), refused.port, refused.text))
			}
			return fmt.Errorf("failed to allocate a nodePort: %w", err)
		}
		c.takenPorts = append(fixed, got...)
		for i := range blanks {
			*blanks[i].port = got[blanks[i].group]
		}
	}
	now := portsOf(svc)
	for _, n := range had {
		if !slices.Contains(now, n) {
			c.leftPorts = append(c.leftPorts, n)
		}
	}
	return nil
}

// shareNodePorts gives ports of the same number and different protocols the same node port,
// because clients of DNS or SIP expect one number for TCP and UDP.
func shareNodePorts(svc *corev1.Service) {
	if !core.NeedsNodePorts(svc) {
		return
	}
	ports := svc.Spec.Ports
	for i := range ports {
		if ports[i].NodePort != 0 {
			continue
		}
		for j := range ports {
			if ports[j].NodePort != 0 && ports[j].Port == ports[i].Port && ports[j].Protocol != ports[i].Protocol {
				ports[i].NodePort = ports[j].NodePort
				break
			}
		}
	}
}

// blank is a node port to allocate. All blanks of a group, which have the same port number and
// different protocols, get the same node port.
type blank struct {
	port  *int32
	group int
}

func blankPorts(svc *corev1.Service) []blank {
	var out []blank
	next := 0
	if core.NeedsNodePorts(svc) {
		type made struct {
			port     int32
			protocol corev1.Protocol
			group    int
		}
		var seen []made
		for i := range svc.Spec.Ports {
			p := &svc.Spec.Ports[i]
			if p.NodePort != 0 {
				continue
			}
			group := -1
			for _, m := range seen {
				if m.port == p.Port && m.protocol != p.Protocol {
					group = m.group
				}
			}
			if group < 0 {
				group = next
				next++
			}
			seen = append(seen, made{p.Port, p.Protocol, group})
			out = append(out, blank{&p.NodePort, group})
		}
	}
	if core.NeedsHealthCheckNodePort(svc) && svc.Spec.HealthCheckNodePort == 0 {
		out = append(out, blank{&svc.Spec.HealthCheckNodePort, next})
	}
	return out
}

func groups(blanks []blank) int {
	n := 0
	for _, b := range blanks {
		n = max(n, b.group+1)
	}
	return n
}

func portPath(svc *corev1.Service, n int32) *field.Path {
	for i := range svc.Spec.Ports {
		if svc.Spec.Ports[i].NodePort == n {
			return field.NewPath("spec", "ports").Index(i).Child("nodePort")
		}
	}
	return field.NewPath("spec", "healthCheckNodePort")
}

// refusedError states why a requested address or port cannot be allocated.
type refusedError struct {
	text string
	port int32
}

func (e *refusedError) Error() string { return e.text }

var errFull = errors.New("range is full")

func invalid(svc *corev1.Service, e *field.Error) error {
	return apierrors.NewInvalid(serviceKind, svc.Name, field.ErrorList{e})
}

var serviceKind = corev1.SchemeGroupVersion.WithKind("Service").GroupKind()
