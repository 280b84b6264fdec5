package nodecidr

import (
	"errors"
	"fmt"
	"net/netip"
)

// maxRanges bounds a pool: more nodes than that no cluster has.
const maxRanges = 1 << 20

// errFull says that every range is taken.
var errFull = errors.New("all pod ranges are taken")

// pool hands out the ranges of a fixed size within one prefix.
type pool struct {
	prefix netip.Prefix
	bits   int
	size   int
	taken  map[int]string // by index, the node's name
	next   int            // where to look first: a range that was freed is used last
}

func newPool(prefix netip.Prefix, bits int) (*pool, error) {
	prefix = prefix.Masked()
	if bits < prefix.Bits() || bits > prefix.Addr().BitLen() {
		return nil, fmt.Errorf("ranges of /%d do not fit into %s", bits, prefix)
	}
	size := maxRanges
	if d := bits - prefix.Bits(); d < 20 {
		size = 1 << d
	}
	return &pool{prefix: prefix, bits: bits, size: size, taken: map[int]string{}}, nil
}

// at is the range of an index.
func (p *pool) at(i int) netip.Prefix {
	addr := p.prefix.Addr().AsSlice()
	// Add i at the last bit of the range's prefix.
	for bit, rest := p.bits-1, i; rest > 0; bit, rest = bit-1, rest>>1 {
		if rest&1 == 1 {
			addr[bit/8] |= 1 << (7 - bit%8)
		}
	}
	a, _ := netip.AddrFromSlice(addr)
	return netip.PrefixFrom(a, p.bits)
}

// index is the inverse of at; ok is false for a range of another pool.
func (p *pool) index(r netip.Prefix) (i int, ok bool) {
	if r.Addr().BitLen() != p.prefix.Addr().BitLen() || r.Bits() != p.bits || !p.prefix.Contains(r.Addr()) {
		return 0, false
	}
	addr := r.Addr().AsSlice()
	for bit := p.prefix.Bits(); bit < p.bits; bit++ {
		i <<= 1
		if addr[bit/8]&(1<<(7-bit%8)) != 0 {
			i |= 1
		}
		if i >= p.size {
			return 0, false
		}
	}
	return i, true
}

// take marks a range as a node's.
func (p *pool) take(node string, r netip.Prefix) {
	if i, ok := p.index(r); ok && p.taken[i] == "" {
		p.taken[i] = node
	}
}

// allocate finds a free range and marks it.
func (p *pool) allocate(node string) (netip.Prefix, error) {
	if len(p.taken) >= p.size {
		return netip.Prefix{}, errFull
	}
	for p.taken[p.next] != "" {
		p.next = (p.next + 1) % p.size
	}
	i := p.next
	p.taken[i] = node
	p.next = (i + 1) % p.size
	return p.at(i), nil
}

// release frees what a node has.
func (p *pool) release(node string) {
	for i, n := range p.taken {
		if n == node {
			delete(p.taken, i)
		}
	}
}
