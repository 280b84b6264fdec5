package serviceaddress

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	corev1 "k8s.io/api/core/v1"

	"keelson.dev/services/apiserver/internal/envelope"
	"keelson.dev/services/apiserver/internal/store"
)

const (
	// repairEvery is the time between repairs, as in Kubernetes.
	repairEvery = 10 * time.Minute
	// leakAge is how long an address without an owner is left alone, because its Service may be
	// about to be stored.
	leakAge = time.Minute
	// servicePrefix is Kubernetes' etcd prefix of Services.
	servicePrefix = "/registry/services/specs/"
)

// Run repairs periodically until ctx ends. It calls ready after the first repair.
func (a *Allocator) Run(ctx context.Context, ready func()) error {
	leaked, err := a.repair(ctx, nil)
	if err != nil && ctx.Err() == nil {
		return fmt.Errorf("repair service addresses: %w", err)
	}
	ready()
	wait := leakAge
	for {
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return nil
		}
		next, err := a.repair(ctx, leaked)
		if err != nil {
			if ctx.Err() == nil {
				a.cfg.Log.WarnContext(ctx, "cannot repair service addresses", "error", err)
			}
			wait = leakAge
			continue
		}
		if leaked, wait = next, repairEvery; len(leaked) > 0 {
			wait = leakAge
		}
	}
}

// repair allocates what Services use without an allocation, and releases what is allocated but
// not used by a Service: addresses older than leakAge, and ports that the previous repair already
// found leaked. It returns the ports that are leaked now.
func (a *Allocator) repair(ctx context.Context, leaked map[int32]bool) (map[int32]bool, error) {
	taken, err := a.addresses.list(ctx)
	if err != nil {
		return nil, err
	}
	// The bitmap is read before the Services, so that a port which is allocated in between looks
	// free rather than leaked.
	before, err := a.ports.read(ctx)
	if err != nil {
		return nil, err
	}
	services, err := a.services(ctx)
	if err != nil {
		return nil, err
	}
	if err := a.repairAddresses(ctx, taken, services); err != nil {
		return nil, err
	}
	return a.repairPorts(ctx, before, services, leaked)
}

func (a *Allocator) services(ctx context.Context) ([]*corev1.Service, error) {
	page, err := a.cfg.Store.List(ctx, servicePrefix, store.ListOptions{})
	if err != nil {
		return nil, err
	}
	out := make([]*corev1.Service, 0, len(page.Entries))
	for _, e := range page.Entries {
		v, err := envelope.Decode(e.Value)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", e.Key, err)
		}
		svc := &corev1.Service{}
		if err := svc.Unmarshal(v.Raw); err != nil {
			return nil, fmt.Errorf("%s: %w", e.Key, err)
		}
		out = append(out, svc)
	}
	return out, nil
}

func (a *Allocator) repairAddresses(ctx context.Context, taken []store.Entry, services []*corev1.Service) error {
	owners := make(map[string]*corev1.Service, len(services))
	for _, svc := range services {
		if ip := addressOf(svc); ip != "" {
			owners[ip] = svc
		}
	}
	for _, e := range taken {
		ip := e.Key[len(addressPrefix):]
		if owners[ip] != nil {
			delete(owners, ip)
			continue
		}
		obj, err := decodeAddress(e)
		if err == nil && a.cfg.Now().Sub(obj.CreationTimestamp.Time) < leakAge {
			continue
		}
		addr, perr := netip.ParseAddr(ip)
		offset, ok := a.addresses.offset(addr)
		if perr != nil || !ok {
			continue // of another range
		}
		a.cfg.Log.WarnContext(ctx, "released a cluster IP without a Service", "ip", ip)
		if err := a.addresses.remove(ctx, offset, e.ModRevision); err != nil && !errors.Is(err, store.ErrConflict) {
			return err
		}
	}
	for ip, svc := range owners {
		addr, err := netip.ParseAddr(ip)
		if err != nil {
			continue
		}
		offset, ok := a.addresses.offset(addr)
		if !ok {
			a.cfg.Log.WarnContext(ctx, "cluster IP is outside the range", "ip", ip, "namespace", svc.Namespace, "service", svc.Name)
			continue
		}
		if _, err := a.addresses.take(ctx, offset, svc); err != nil {
			return err
		}
	}
	return nil
}

func (a *Allocator) repairPorts(ctx context.Context, before *bitmap, services []*corev1.Service, leaked map[int32]bool) (map[int32]bool, error) {
	held := map[int32]bool{}
	for _, svc := range services {
		for _, n := range portsOf(svc) {
			if n >= a.cfg.FirstPort && n <= a.cfg.LastPort {
				held[n] = true
			}
		}
	}
	now := map[int32]bool{}
	var free []int32
	for n := a.cfg.FirstPort; n <= a.cfg.LastPort; n++ {
		if before.bits.Bit(int(n-a.cfg.FirstPort)) == 0 || held[n] {
			continue
		}
		if leaked[n] {
			free = append(free, n)
		} else {
			now[n] = true
		}
	}
	if len(free) > 0 {
		a.cfg.Log.WarnContext(ctx, "released node ports without a Service", "ports", free)
		if err := a.ports.release(ctx, free); err != nil {
			return nil, err
		}
	}
	return now, a.ports.change(ctx, func(b *bitmap) (bool, error) {
		changed := false
		for n := range held {
			if i := int(n - a.cfg.FirstPort); b.bits.Bit(i) == 0 {
				b.bits.SetBit(b.bits, i, 1)
				changed = true
			}
		}
		return changed, nil
	})
}
