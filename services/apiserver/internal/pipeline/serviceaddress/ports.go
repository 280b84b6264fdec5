package serviceaddress

import (
	"context"
	"errors"
	"fmt"
	"math/big"
	"math/rand/v2"

	"github.com/google/uuid"
	corev1 "k8s.io/api/core/v1"

	"keelson.dev/services/apiserver/internal/envelope"
	"keelson.dev/services/apiserver/internal/store"
)

// portsKey is Kubernetes' key of the node ports' RangeAllocation.
const portsKey = "/registry/ranges/servicenodeports"

// portTries bounds how often the bitmap is read again after a concurrent change.
const portTries = 64

// ports allocates node ports. The bitmap in the store is its only state.
type ports struct {
	store       store.Store
	first, last int32
}

// bitmap is the stored RangeAllocation: bit i is port first+i.
type bitmap struct {
	bits *big.Int
	at   store.Revision
}

func (p *ports) read(ctx context.Context) (*bitmap, error) {
	entry, _, err := p.store.Get(ctx, portsKey)
	if errors.Is(err, store.ErrNotFound) {
		return &bitmap{bits: new(big.Int), at: store.MustNotExist}, nil
	}
	if err != nil {
		return nil, err
	}
	v, err := envelope.Decode(entry.Value)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", portsKey, err)
	}
	var obj corev1.RangeAllocation
	if err := obj.Unmarshal(v.Raw); err != nil {
		return nil, fmt.Errorf("%s: %w", portsKey, err)
	}
	b := &bitmap{bits: new(big.Int), at: entry.ModRevision}
	if obj.Range == p.name() { // the bitmap of another range is not usable; repair fills a new one
		b.bits.SetBytes(obj.Data)
	}
	return b, nil
}

func (p *ports) name() string { return fmt.Sprintf("%d-%d", p.first, p.last) }

// change edits the bitmap and writes it, until there is no conflict. edit reports whether it
// changed anything.
func (p *ports) change(ctx context.Context, edit func(*bitmap) (bool, error)) error {
	for range portTries {
		b, err := p.read(ctx)
		if err != nil {
			return err
		}
		changed, err := edit(b)
		if err != nil || !changed {
			return err
		}
		err = p.write(ctx, b)
		if !errors.Is(err, store.ErrConflict) && !errors.Is(err, store.ErrExists) && !errors.Is(err, store.ErrNotFound) {
			return err
		}
	}
	return errors.New("node ports: too many concurrent changes, please try again")
}

func (p *ports) write(ctx context.Context, b *bitmap) error {
	obj := &corev1.RangeAllocation{Range: p.name(), Data: b.bits.Bytes()}
	id := uuid.NewString()
	value, err := envelope.EncodeObject(envelope.Value{APIVersion: "v1", Kind: "RangeAllocation", WriteID: id}, obj)
	if err != nil {
		return err
	}
	verdicts, err := p.store.Commit(ctx, []store.Write{{
		Key: portsKey, Value: value, Expect: b.at,
		Settled: func(found []byte) bool { return envelope.WriteID(found) == id },
	}})
	if err != nil {
		return err
	}
	return verdicts[0].Err
}

// claim allocates the fixed ports, and n others.
func (p *ports) claim(ctx context.Context, fixed []int32, n int, dryRun bool) (got []int32, err error) {
	err = p.change(ctx, func(b *bitmap) (bool, error) {
		got = got[:0]
		for _, port := range fixed {
			if port < p.first || port > p.last {
				return false, &refusedError{port: port, text: fmt.Sprintf("provided port is not in the valid range. The range of valid ports is %s", p.name())}
			}
			if b.bits.Bit(int(port-p.first)) != 0 {
				return false, &refusedError{port: port, text: "provided port is already allocated"}
			}
			b.bits.SetBit(b.bits, int(port-p.first), 1)
		}
		for range n {
			port, ok := p.free(b)
			if !ok {
				return false, errFull
			}
			b.bits.SetBit(b.bits, int(port-p.first), 1)
			got = append(got, port)
		}
		return !dryRun, nil
	})
	return got, err
}

// free returns a random free port. It uses the band that is reserved for requests for a specific
// port (KEP-3668) only when the rest is full.
func (p *ports) free(b *bitmap) (int32, bool) {
	size := p.last - p.first + 1
	band := int32(0)
	if size >= 16 {
		band = min(max(16, size/32), 128)
	}
	for _, part := range [][2]int32{{band, size}, {0, band}} {
		n := part[1] - part[0]
		if n <= 0 {
			continue
		}
		start := rand.Int32N(n)
		for i := range n {
			o := part[0] + (start+i)%n
			if b.bits.Bit(int(o)) == 0 {
				return p.first + o, true
			}
		}
	}
	return 0, false
}

func (p *ports) release(ctx context.Context, list []int32) error {
	return p.change(ctx, func(b *bitmap) (bool, error) {
		changed := false
		for _, port := range list {
			if port >= p.first && port <= p.last && b.bits.Bit(int(port-p.first)) != 0 {
				b.bits.SetBit(b.bits, int(port-p.first), 0)
				changed = true
			}
		}
		return changed, nil
	})
}
