package dns

import (
	"container/list"
	"hash/maphash"
	"sync"
	"time"

	mdns "github.com/miekg/dns"
)

const (
	cacheShards = 16
	shardSize   = 512
	// cacheMessage is the largest answer that is kept.
	cacheMessage = 4 << 10
	// cacheMost bounds how long an answer is kept, whatever its TTL.
	cacheMost = time.Hour
	// cacheNegative bounds how long 'no' is kept.
	cacheNegative = 30 * time.Second
)

// cache keeps upstream answers for as long as they allow, at most
// cacheShards × shardSize of them; the least recently used go first.
type cache struct {
	seed   maphash.Seed
	shards [cacheShards]shard
}

type shard struct {
	mu    sync.Mutex
	byKey map[question]*list.Element
	order *list.List // of *entry; front is the most recently used
}

type entry struct {
	key     question
	msg     *mdns.Msg
	stored  time.Time
	expires time.Time
}

func newCache() *cache {
	c := &cache{seed: maphash.MakeSeed()}
	for i := range c.shards {
		c.shards[i].byKey = map[question]*list.Element{}
		c.shards[i].order = list.New()
	}
	return c
}

func (c *cache) shard(q question) *shard {
	return &c.shards[maphash.Comparable(c.seed, q)%cacheShards]
}

// get returns a copy of an answer, its TTLs reduced by its age; nil if there is
// none.
func (c *cache) get(q question, now time.Time) *mdns.Msg {
	s := c.shard(q)
	s.mu.Lock()
	el := s.byKey[q]
	if el == nil {
		s.mu.Unlock()
		return nil
	}
	e := el.Value.(*entry)
	if !now.Before(e.expires) {
		s.order.Remove(el)
		delete(s.byKey, q)
		s.mu.Unlock()
		return nil
	}
	s.order.MoveToFront(el)
	s.mu.Unlock()
	m := e.msg.Copy() // entries do not change
	age := uint32(now.Sub(e.stored) / time.Second)
	for _, section := range [][]mdns.RR{m.Answer, m.Ns, m.Extra} {
		for _, rr := range section {
			rr.Header().Ttl -= min(age, rr.Header().Ttl)
		}
	}
	return m
}

func (c *cache) put(q question, m *mdns.Msg, now time.Time) {
	keep := lifetime(m)
	if keep <= 0 || m.Len() > cacheMessage {
		return
	}
	s := c.shard(q)
	s.mu.Lock()
	defer s.mu.Unlock()
	if el := s.byKey[q]; el != nil {
		s.order.Remove(el)
	}
	s.byKey[q] = s.order.PushFront(&entry{key: q, msg: m.Copy(), stored: now, expires: now.Add(keep)})
	if s.order.Len() > shardSize {
		last := s.order.Back()
		s.order.Remove(last)
		delete(s.byKey, last.Value.(*entry).key)
	}
}

// lifetime is how long an answer may be kept: the least TTL of its records; for
// 'no', what the SOA record says (RFC 2308, section 5), and not at all without.
func lifetime(m *mdns.Msg) time.Duration {
	if m.Truncated || (m.Rcode != mdns.RcodeSuccess && m.Rcode != mdns.RcodeNameError) {
		return 0
	}
	if len(m.Answer) == 0 || m.Rcode == mdns.RcodeNameError {
		for _, rr := range m.Ns {
			if soa, ok := rr.(*mdns.SOA); ok {
				return min(time.Duration(min(soa.Hdr.Ttl, soa.Minttl))*time.Second, cacheNegative)
			}
		}
		return 0
	}
	least := uint32(cacheMost / time.Second)
	for _, section := range [][]mdns.RR{m.Answer, m.Ns, m.Extra} {
		for _, rr := range section {
			least = min(least, rr.Header().Ttl)
		}
	}
	return time.Duration(least) * time.Second
}
