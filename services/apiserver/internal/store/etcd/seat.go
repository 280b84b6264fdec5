package etcd

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"
)

// A seat is a member's place in the cluster: its name and its disk. etcd knows it by the peer
// URL unix://<seat>, which never changes; the address of its process is in its card. Another
// disk is another seat: a member that has lost its disk has forgotten its votes and must not be
// accepted as the member that it was.
const (
	seatPrefix = "keelson-etcd-"
	urlPrefix  = "unix://"
	diskMark   = "_"
)

// memberName matches valid names of members: a seat is the host of a URL and the name of a
// file.
var memberName = regexp.MustCompile(`^[a-z0-9]([a-z0-9.-]{0,60}[a-z0-9])?$`)

// diskName matches ids of disks, which are random numbers.
var diskName = regexp.MustCompile(`^[0-9a-f]{8}$`)

// isSeat reports whether another member may announce this seat, from which file names are
// derived.
func isSeat(seat string) bool {
	rest, ok := strings.CutPrefix(seat, seatPrefix)
	name, disk, marked := strings.Cut(rest, diskMark)
	return ok && memberName.MatchString(name) && (!marked || diskName.MatchString(disk))
}

func seatOf(name, disk string) string {
	if disk == "" { // a member that started alone
		return seatPrefix + name
	}
	return seatPrefix + name + diskMark + disk
}

// nameOf returns the member's name in a seat.
func nameOf(seat string) string {
	name, _, _ := strings.Cut(strings.TrimPrefix(seat, seatPrefix), diskMark)
	return name
}

// card is what a member announces about itself. The others pass it on, and the newest card of a
// seat replaces the older ones.
type card struct {
	Seat    string `json:"seat"`
	Address string `json:"address"`
	// Service is the address of its other services for members. This package only passes it on.
	Service string `json:"service,omitempty"`
	// Number increases with each card of the seat.
	Number int64 `json:"number"`
	// Fresh means that the member has no data yet.
	Fresh bool `json:"fresh,omitempty"`
	// Founders are the seats with which it founded its cluster, if it did.
	Founders []string `json:"founders,omitempty"`
	// Era is when its cluster was recovered from a survivor, in nanoseconds since 1970, or 0 if
	// it never was.
	Era int64 `json:"era,omitempty"`
}

// memory is what a member saves on its disk next to etcd's data.
type memory struct {
	Seat string `json:"seat"`
	// Founders is written before a cluster is founded: a member that is interrupted founds the
	// same one again.
	Founders []string `json:"founders,omitempty"`
	// Member means that there is, or was, a log on this disk.
	Member bool            `json:"member,omitempty"`
	Cards  map[string]card `json:"cards,omitempty"`
	// Era is the era of its cluster. Outlived is a later era that others have announced: this
	// member was given up as lost, and must not run any more.
	Era      int64 `json:"era,omitempty"`
	Outlived int64 `json:"outlived,omitempty"`
	// Lost are the addresses of the members that a recovery gave up as lost. If they come back,
	// they are informed.
	Lost []string `json:"lost,omitempty"`
}

// errOutlived is the error of a member that was given up as lost.
var errOutlived = errors.New("this member was given up as lost when its cluster was recovered from another member; empty its directory and let it join again")

// cards holds the cards of all members, as far as this one knows them.
type cards struct {
	path string
	mu   sync.Mutex
	mem  memory
	// configured are the addresses in the configuration, by name. They are tried after those
	// that the members announce.
	configured map[string]string
	// seats are those of the cluster's members, or nil until they are known.
	seats map[string]bool
	// outlived is closed when this member learns of a later era.
	outlived chan struct{}
}

// memoryFile is the name of the file in the member's directory.
const memoryFile = "keelson-member.json"

// openCards reads the member's memory. hasLog reports whether etcd's data exists.
func openCards(dir, name, address, service string, configured map[string]string, hasLog bool) (*cards, error) {
	c := &cards{path: filepath.Join(dir, memoryFile), configured: configured, outlived: make(chan struct{})}
	b, err := os.ReadFile(c.path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		var disk [4]byte
		_, _ = rand.Read(disk[:])
		c.mem.Seat = seatOf(name, hex.EncodeToString(disk[:]))
		if hasLog { // it started alone, and has no memory
			c.mem.Seat = seatOf(name, "")
		}
	case err != nil:
		return nil, err
	default:
		if err := json.Unmarshal(b, &c.mem); err != nil {
			return nil, fmt.Errorf("%s: %w", c.path, err)
		}
	}
	if got := nameOf(c.mem.Seat); got != name {
		return nil, fmt.Errorf("%s belongs to member %q, but this is member %q", dir, got, name)
	}
	if c.mem.Outlived > c.mem.Era && hasLog {
		return nil, errOutlived
	}
	if c.mem.Member && !hasLog {
		return nil, fmt.Errorf("member %s has lost its log; empty %s and replace the member", name, dir)
	}
	c.mem.Member = hasLog
	if c.mem.Cards == nil {
		c.mem.Cards = map[string]card{}
	}
	return c, c.publish(func(own *card) {
		own.Address, own.Service, own.Fresh, own.Founders, own.Era = address, service, !hasLog, c.mem.Founders, c.mem.Era
	})
}

// publish changes this member's own card.
func (c *cards) publish(change func(own *card)) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	own := c.mem.Cards[c.mem.Seat]
	own.Seat = c.mem.Seat
	own.Number = max(own.Number+1, time.Now().UnixNano())
	change(&own)
	c.mem.Cards[c.mem.Seat] = own
	return c.save()
}

// found records the founders of the cluster, before it is founded.
func (c *cards) found(seats []string) error {
	c.mu.Lock()
	c.mem.Founders = seats
	c.mu.Unlock()
	return c.publish(func(own *card) { own.Founders = seats })
}

// joined records that this disk has a log from now on.
func (c *cards) joined() error {
	c.mu.Lock()
	was := c.mem.Member
	c.mem.Member = true
	if !was { // the era of the cluster that added it
		c.mem.Era = c.newestEra()
	}
	era := c.mem.Era
	c.mu.Unlock()
	if was {
		return nil
	}
	return c.publish(func(own *card) { own.Fresh, own.Era = false, era })
}

// save writes the memory to disk. The caller holds c.mu.
func (c *cards) save() error {
	b, err := json.MarshalIndent(&c.mem, "", "  ")
	if err != nil {
		return err
	}
	next := c.path + ".next"
	f, err := os.OpenFile(next, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(next, c.path)
	}
	if err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(c.path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

func (c *cards) seat() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.mem.Seat
}

func (c *cards) own() card {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.mem.Cards[c.mem.Seat]
}

// all returns all cards, to be sent to other members.
func (c *cards) all() []card {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Collect(maps.Values(c.mem.Cards))
}

// Limits of what is accepted from others.
const (
	maxCards    = 64
	maxCardSize = 8192
	maxAddress  = 300
)

// merge accepts cards from another member.
func (c *cards) merge(received []card) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	changed := false
	for _, t := range received {
		if t.Seat == c.mem.Seat || !isSeat(t.Seat) || len(t.Founders) > maxCards || len(t.Address) > maxAddress || len(t.Service) > maxAddress {
			continue
		}
		if c.mem.Member && !t.Fresh && t.Era != c.mem.Era {
			if t.Era > c.mem.Era && t.Era > c.mem.Outlived {
				if c.mem.Outlived <= c.mem.Era {
					close(c.outlived)
				}
				c.mem.Outlived = t.Era
				changed = true
			}
			continue // of another cluster
		}
		// The clock may have been set back since the name's last disk was written: a fresh
		// member continues from the number that the others know.
		if own := c.mem.Cards[c.mem.Seat]; own.Fresh && nameOf(t.Seat) == nameOf(own.Seat) && t.Number >= own.Number && t.Number < math.MaxInt64 {
			own.Number = t.Number + 1
			c.mem.Cards[c.mem.Seat] = own
			changed = true
		}
		old, known := c.mem.Cards[t.Seat]
		if !c.counts(t) || known && old.Number >= t.Number || !known && len(c.mem.Cards) >= maxCards && !c.forgetFresh() {
			continue
		}
		c.mem.Cards[t.Seat] = t
		changed = true
	}
	if !changed {
		return nil
	}
	return c.save()
}

// onlySeats sets the seats of the cluster's members. Cards of other seats are dropped and not
// accepted any more, except from fresh members, which wait to be added.
func (c *cards) onlySeats(seats map[string]bool) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.seats = seats
	changed := false
	for seat, t := range c.mem.Cards {
		if !c.counts(t) {
			delete(c.mem.Cards, seat)
			changed = true
		}
	}
	if !changed {
		return nil
	}
	return c.save()
}

// counts reports whether a card should be kept. The caller holds c.mu.
func (c *cards) counts(t card) bool {
	return c.seats == nil || t.Fresh || t.Seat == c.mem.Seat || c.seats[t.Seat]
}

// addresses returns where a seat may be reached, the best address first.
func (c *cards) addresses(seat string) []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []string
	if t, ok := c.mem.Cards[seat]; ok && t.Address != "" {
		out = append(out, t.Address)
	}
	if a := c.configured[nameOf(seat)]; a != "" && !slices.Contains(out, a) {
		out = append(out, a)
	}
	return out
}

// everywhere returns all known addresses except this member's own.
func (c *cards) everywhere() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []string
	own := c.mem.Cards[c.mem.Seat].Address
	add := func(a string) {
		if a != "" && a != own && !slices.Contains(out, a) {
			out = append(out, a)
		}
	}
	for _, t := range c.mem.Cards {
		add(t.Address)
	}
	for _, a := range c.configured {
		add(a)
	}
	for _, a := range c.mem.Lost {
		add(a)
	}
	return out
}

// newestEra returns the newest era that a member with data has announced. The caller holds
// c.mu.
func (c *cards) newestEra() (era int64) {
	for _, t := range c.mem.Cards {
		if !t.Fresh {
			era = max(era, t.Era)
		}
	}
	return era
}

// survives reports whether the member of a card was not given up as lost, as far as this one
// knows.
func (c *cards) survives(t card) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return t.Fresh || t.Era >= c.newestEra()
}

// newest returns the newest card of a name, and whether there is one.
func (c *cards) newest(name string) (card, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var best card
	for seat, t := range c.mem.Cards {
		if nameOf(seat) == name && t.Number > best.Number {
			best = t
		}
	}
	return best, best.Seat != ""
}

// fresh returns the names under which other members wait with an empty disk, sorted.
func (c *cards) fresh() (out []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for seat, t := range c.mem.Cards {
		if t.Fresh && seat != c.mem.Seat {
			out = append(out, nameOf(seat))
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// forgetFresh makes room by dropping the fresh card with the lowest number, if there is one. If
// its member is still there, it announces itself again. The caller holds c.mu.
func (c *cards) forgetFresh() bool {
	oldest := ""
	for seat, t := range c.mem.Cards {
		if t.Fresh && seat != c.mem.Seat && (oldest == "" || t.Number < c.mem.Cards[oldest].Number) {
			oldest = seat
		}
	}
	delete(c.mem.Cards, oldest)
	return oldest != ""
}
