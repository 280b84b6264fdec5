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
	// clientSize is the number of answers in a shard above which a client's new answers
	// evict its own.
	clientSize = shardSize / 4
	// cacheMessage is the size in bytes of the largest answer that is cached.
	cacheMessage = 4 << 10
	// cacheMost bounds how long an answer is cached, whatever its TTL.
	cacheMost = time.Hour
	// cacheNegative bounds how long a negative answer is cached.
	cacheNegative = 30 * time.Second
)

// cache caches upstream answers for as long as their TTLs allow. It holds at most
// cacheShards × shardSize answers. To make room for a new one it evicts the least recently
// used answer, of the same client if that client has many.
type cache struct {
	seed   maphash.Seed
	shards [cacheShards]shard
}

type shard struct {
	mu    sync.Mutex
	byKey map[question]*list.Element
	order *list.List // of *entry; front is the most recently used
	owned map[client]int
}

type entry struct {
	key     question
	owner   client
	msg     *mdns.Msg
	stored  time.Time
	expires time.Time
}

func newCache() *cache {
	c := &cache{seed: maphash.MakeSeed()}
	for i := range c.shards {
		c.shards[i].byKey = map[question]*list.Element{}
		c.shards[i].order = list.New()
		c.shards[i].owned = map[client]int{}
	}
	return c
}

func (c *cache) shard(q question) *shard {
	return &c.shards[maphash.Comparable(c.seed, q)%cacheShards]
}

// get returns a copy of an answer with its TTLs reduced by its age, or nil if there is
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
		s.drop(el)
		s.mu.Unlock()
		return nil
	}
	s.order.MoveToFront(el)
	s.mu.Unlock()
	m := e.msg.Copy() // entries are immutable
	age := uint32(now.Sub(e.stored) / time.Second)
	for _, section := range [][]mdns.RR{m.Answer, m.Ns, m.Extra} {
		for _, rr := range section {
			rr.Header().Ttl -= min(age, rr.Header().Ttl)
		}
	}
	return m
}

// drop removes an entry.
func (s *shard) drop(el *list.Element) {
	e := s.order.Remove(el).(*entry)
	delete(s.byKey, e.key)
	if s.owned[e.owner]--; s.owned[e.owner] == 0 {
		delete(s.owned, e.owner)
	}
}

// oldest returns the entry to evict: the least recently used one, or the least recently used
// one of the client if it owns more than clientSize.
func (s *shard) oldest(owner client) *list.Element {
	el := s.order.Back()
	if s.owned[owner] <= clientSize {
		return el
	}
	for el.Value.(*entry).owner != owner {
		el = el.Prev()
	}
	return el
}

func (c *cache) put(owner client, q question, m *mdns.Msg, now time.Time) {
	keep := lifetime(m)
	if keep <= 0 || m.Len() > cacheMessage {
		return
	}
	s := c.shard(q)
	s.mu.Lock()
	defer s.mu.Unlock()
	if el := s.byKey[q]; el != nil {
		s.drop(el)
	}
	s.byKey[q] = s.order.PushFront(&entry{key: q, owner: owner, msg: m.Copy(), stored: now, expires: now.Add(keep)})
	s.owned[owner]++
	if s.order.Len() > shardSize {
		s.drop(s.oldest(owner))
	}
}

// lifetime returns how long an answer may be cached: the least TTL of its records. A
// negative answer is cached as long as its SOA record says (RFC 2308, section 5), and not
// at all without one.
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
