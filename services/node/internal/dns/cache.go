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
	// clientSize is from how many answers in a shard on a client's own make room for
	// its next ones.
	clientSize = shardSize / 4
	// cacheMessage is the largest answer that is kept.
	cacheMessage = 4 << 10
	// cacheMost bounds how long an answer is kept, whatever its TTL.
	cacheMost = time.Hour
	// cacheNegative bounds how long 'no' is kept.
	cacheNegative = 30 * time.Second
)

// cache keeps upstream answers for as long as they allow, at most
// cacheShards × shardSize of them; the least recently used go first, and those
// of the client that asks if it has many already.
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
		s.drop(el)
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

// drop removes an entry.
func (s *shard) drop(el *list.Element) {
	e := s.order.Remove(el).(*entry)
	delete(s.byKey, e.key)
	if s.owned[e.owner]--; s.owned[e.owner] == 0 {
		delete(s.owned, e.owner)
	}
}

// oldest is the least recently used entry, of one client if it has many.
func (s *shard) oldest(who client) *list.Element {
	el := s.order.Back()
	if s.owned[who] <= clientSize {
		return el
	}
	for el.Value.(*entry).owner != who {
		el = el.Prev()
	}
	return el
}

func (c *cache) put(who client, q question, m *mdns.Msg, now time.Time) {
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
	s.byKey[q] = s.order.PushFront(&entry{key: q, owner: who, msg: m.Copy(), stored: now, expires: now.Add(keep)})
	s.owned[who]++
	if s.order.Len() > shardSize {
		s.drop(s.oldest(who))
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
