package serviceaddress

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/google/uuid"

	"keelson.dev/services/apiserver/internal/envelope"
	"keelson.dev/services/apiserver/internal/store"
)

// addressPrefix is Kubernetes' etcd prefix of IPAddress objects.
const addressPrefix = "/registry/ipaddresses/"

// addresses allocates the addresses of a range.
type addresses struct {
	store store.Store
	base  uint32 // the network address, which is never allocated
	size  uint32 // including the network and broadcast addresses
	band  uint32 // number of low offsets that are reserved for requests for a specific address (KEP-3070)
	now   func() time.Time

	mu   sync.Mutex
	used map[uint32]struct{} // known allocated offsets
}

func newAddresses(cfg Config) *addresses {
	prefix := cfg.Addresses.Masked()
	b := prefix.Addr().As4()
	size := uint32(1) << (32 - prefix.Bits())
	return &addresses{
		store: cfg.Store, base: binary.BigEndian.Uint32(b[:]), size: size,
		band: min(max(16, size/16), 256), now: cfg.Now,
		used: map[uint32]struct{}{},
	}
}

func (a *addresses) ip(offset uint32) netip.Addr {
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], a.base+offset)
	return netip.AddrFrom4(b)
}

// offset returns the position of an address in the range. It returns false if the address is
// outside of the range or may not be allocated.
func (a *addresses) offset(ip netip.Addr) (uint32, bool) {
	if !ip.Is4() {
		return 0, false
	}
	b := ip.As4()
	n := binary.BigEndian.Uint32(b[:])
	if n <= a.base || n-a.base >= a.size-1 {
		return 0, false
	}
	return n - a.base, true
}

// claim allocates the wanted address, or any if want is empty.
func (a *addresses) claim(ctx context.Context, want string, svc *corev1.Service, dryRun bool) (string, error) {
	if want == "" {
		return a.claimAny(ctx, svc, dryRun)
	}
	ip, err := netip.ParseAddr(want)
	if err != nil {
		return want, nil // validation reports what is wrong
	}
	offset, ok := a.offset(ip)
	if !ok {
		return "", &refusedError{text: fmt.Sprintf("failed to allocate IP %s: the provided IP (%s) is not in the valid range. The range of valid IPs is %s", ip, ip, netip.PrefixFrom(a.ip(0), a.bits()))}
	}
	if dryRun {
		if _, _, err := a.store.Get(ctx, a.key(offset)); errors.Is(err, store.ErrNotFound) {
			return want, nil
		} else if err != nil {
			return "", err
		}
	} else {
		ok, err := a.take(ctx, offset, svc)
		if err != nil || ok {
			return want, err
		}
	}
	return "", &refusedError{text: fmt.Sprintf("failed to allocate IP %s: provided IP is already allocated", ip)}
}

func (a *addresses) bits() int {
	bits := 32
	for n := a.size; n > 1; n >>= 1 {
		bits--
	}
	return bits
}

// claimAny allocates a random free address. It uses the reserved part of the range only when the
// rest is full.
func (a *addresses) claimAny(ctx context.Context, svc *corev1.Service, dryRun bool) (string, error) {
	refreshed := false
	for {
		offset, ok := a.free()
		if !ok {
			if refreshed {
				return "", errFull
			}
			refreshed = true // addresses may have been released meanwhile
			if err := a.refresh(ctx); err != nil {
				return "", err
			}
			continue
		}
		if dryRun {
			return a.ip(offset).String(), nil
		}
		ok, err := a.take(ctx, offset, svc)
		if err != nil {
			return "", err
		}
		if ok {
			return a.ip(offset).String(), nil
		}
	}
}

// free returns an offset that is not known to be allocated.
func (a *addresses) free() (uint32, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if o, ok := a.freeIn(min(a.band, a.size-1), a.size-1); ok {
		return o, true
	}
	return a.freeIn(1, min(a.band, a.size-1))
}

func (a *addresses) freeIn(from, to uint32) (uint32, bool) {
	if from >= to {
		return 0, false
	}
	n := to - from
	start := rand.Uint32N(n)
	for i := range n {
		o := from + (start+i)%n
		if _, taken := a.used[o]; !taken {
			return o, true
		}
	}
	return 0, false
}

func (a *addresses) key(offset uint32) string { return addressPrefix + a.ip(offset).String() }

// take creates the address's object. It returns false if the address is already allocated.
func (a *addresses) take(ctx context.Context, offset uint32, svc *corev1.Service) (bool, error) {
	value, err := a.object(offset, svc)
	if err != nil {
		return false, err
	}
	id := envelope.WriteID(value)
	verdicts, err := a.store.Commit(ctx, []store.Write{{
		Key: a.key(offset), Value: value, Expect: store.MustNotExist,
		Settled: func(found []byte) bool { return envelope.WriteID(found) == id },
	}})
	if err == nil {
		err = verdicts[0].Err
	}
	if err != nil && !errors.Is(err, store.ErrExists) {
		return false, err
	}
	a.mu.Lock()
	a.used[offset] = struct{}{}
	a.mu.Unlock()
	return err == nil, nil
}

func (a *addresses) object(offset uint32, svc *corev1.Service) ([]byte, error) {
	obj := &networkingv1.IPAddress{
		ObjectMeta: metav1.ObjectMeta{
			Name: a.ip(offset).String(), UID: types.UID(uuid.NewString()), Generation: 1,
			CreationTimestamp: metav1.NewTime(a.now().Truncate(time.Second)),
			Labels: map[string]string{
				networkingv1.LabelIPAddressFamily: string(corev1.IPv4Protocol),
				networkingv1.LabelManagedBy:       "ipallocator.k8s.io",
			},
		},
		Spec: networkingv1.IPAddressSpec{ParentRef: &networkingv1.ParentReference{
			Resource: "services", Namespace: svc.Namespace, Name: svc.Name,
		}},
	}
	return envelope.EncodeObject(envelope.Value{APIVersion: "networking.k8s.io/v1", Kind: "IPAddress", WriteID: uuid.NewString()}, obj)
}

// release deletes the address's object, if it belongs to the Service.
func (a *addresses) release(ctx context.Context, address string, svc *corev1.Service) error {
	ip, err := netip.ParseAddr(address)
	if err != nil {
		return nil // never claimed
	}
	offset, ok := a.offset(ip)
	if !ok {
		return nil
	}
	entry, _, err := a.store.Get(ctx, a.key(offset))
	if errors.Is(err, store.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	obj, err := decodeAddress(entry)
	if err != nil {
		return err
	}
	if p := obj.Spec.ParentRef; p != nil && (p.Namespace != svc.Namespace || p.Name != svc.Name) {
		return nil
	}
	return a.remove(ctx, offset, entry.ModRevision)
}

func (a *addresses) remove(ctx context.Context, offset uint32, at store.Revision) error {
	verdicts, err := a.store.Commit(ctx, []store.Write{{Key: a.key(offset), Expect: at}})
	if err == nil {
		err = verdicts[0].Err
	}
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return err
	}
	a.mu.Lock()
	delete(a.used, offset)
	a.mu.Unlock()
	return nil
}

func decodeAddress(e store.Entry) (*networkingv1.IPAddress, error) {
	v, err := envelope.Decode(e.Value)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", e.Key, err)
	}
	obj := &networkingv1.IPAddress{}
	if err := obj.Unmarshal(v.Raw); err != nil {
		return nil, fmt.Errorf("%s: %w", e.Key, err)
	}
	return obj, nil
}

// refresh reads which addresses are allocated.
func (a *addresses) refresh(ctx context.Context) error {
	_, err := a.list(ctx)
	return err
}

// list reads the objects of all addresses, and notes which exist.
func (a *addresses) list(ctx context.Context) ([]store.Entry, error) {
	page, err := a.store.List(ctx, addressPrefix, store.ListOptions{})
	if err != nil {
		return nil, err
	}
	used := make(map[uint32]struct{}, len(page.Entries))
	for _, e := range page.Entries {
		if ip, err := netip.ParseAddr(e.Key[len(addressPrefix):]); err == nil {
			if o, ok := a.offset(ip); ok {
				used[o] = struct{}{}
			}
		}
	}
	a.mu.Lock()
	a.used = used
	a.mu.Unlock()
	return page.Entries, nil
}
