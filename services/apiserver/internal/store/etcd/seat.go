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

// A seat is a member's place in the cluster: its name and its disk. etcd knows it
// by the peer URL unix://<seat>, which never changes; where its process can be
// reached is its card's matter. Another disk is another seat: who lost his disk
// has forgotten his votes and must not be taken for who he was.
const (
	seatPrefix = "keelson-etcd-"
	urlPrefix  = "unix://"
	diskMark   = "_"
)

// memberName is what a member may be called: its seat is the host of a URL and the
// name of a file.
var memberName = regexp.MustCompile(`^[a-z0-9]([a-z0-9.-]{0,60}[a-z0-9])?$`)

// diskName is what a disk is called: a random number.
var diskName = regexp.MustCompile(`^[0-9a-f]{8}$`)

// isSeat tells whether others may claim such a seat: names of files are made of it.
func isSeat(seat string) bool {
	rest, ok := strings.CutPrefix(seat, seatPrefix)
	name, disk, marked := strings.Cut(rest, diskMark)
	return ok && memberName.MatchString(name) && (!marked || diskName.MatchString(disk))
}

func seatOf(name, disk string) string {
	if disk == "" { // a member that began alone
		return seatPrefix + name
	}
	return seatPrefix + name + diskMark + disk
}

// nameOf is the member's name in a seat.
func nameOf(seat string) string {
	name, _, _ := strings.Cut(strings.TrimPrefix(seat, seatPrefix), diskMark)
	return name
}

// card is what a member says of itself; the others pass it on. The newest of a
// seat counts.
type card struct {
	Seat    string `json:"seat"`
	Address string `json:"address"`
	// Service is where its other services to members are; this package only passes
	// it on.
	Service string `json:"service,omitempty"`
	// Number grows with each card of the seat.
	Number int64 `json:"number"`
	// Fresh says that the member has no data yet.
	Fresh bool `json:"fresh,omitempty"`
	// Founders are the seats that it was founded with, if it was.
	Founders []string `json:"founders,omitempty"`
	// Era is when its cluster was recovered from a survivor, in nanoseconds since
	// 1970; 0 if it never was.
	Era int64 `json:"era,omitempty"`
}

// memory is what a member keeps on its disk beside etcd's data.
type memory struct {
	Seat string `json:"seat"`
	// Founders is written before a cluster is founded: a member that is interrupted
	// founds the same one again.
	Founders []string `json:"founders,omitempty"`
	// Member says that there is, or was, a log on this disk.
	Member bool            `json:"member,omitempty"`
	Cards  map[string]card `json:"cards,omitempty"`
	// Era is its cluster's. Outlived is a later one that others have told of: this
	// member was given up for lost, and must not run any more.
	Era      int64 `json:"era,omitempty"`
	Outlived int64 `json:"outlived,omitempty"`
	// Lost is where the members were that a recovery gave up: they are told, if they
	// come back.
	Lost []string `json:"lost,omitempty"`
}

// errOutlived is the error of a member that was given up for lost.
var errOutlived = errors.New("this member was given up for lost when its cluster was recovered from another; empty its directory and let it join anew")

// cards are the addresses of all members, as far as this one knows.
type cards struct {
	path string
	mu   sync.Mutex
	mem  memory
	// configured are the addresses that the configuration gives, by name: tried
	// after what the members say themselves.
	configured map[string]string
	// seats are those of the cluster's members; nil until they are known.
	seats map[string]bool
	// outlived is closed when a later era is heard of.
	outlived chan struct{}
}

// memoryFile lies in the member's directory.
const memoryFile = "keelson-member.json"

// openCards reads what the member remembers; hasLog says that etcd's data is there.
func openCards(dir, name, address, service string, configured map[string]string, hasLog bool) (*cards, error) {
	c := &cards{path: filepath.Join(dir, memoryFile), configured: configured, outlived: make(chan struct{})}
	b, err := os.ReadFile(c.path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		var disk [4]byte
		_, _ = rand.Read(disk[:])
		c.mem.Seat = seatOf(name, hex.EncodeToString(disk[:]))
		if hasLog { // it began alone, and remembers nothing
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
		return nil, fmt.Errorf("%s belongs to member %q, this is %q", dir, got, name)
	}
	if c.mem.Outlived > c.mem.Era && hasLog {
		return nil, errOutlived
	}
	if c.mem.Member && !hasLog {
		return nil, fmt.Errorf("member %s: its log is gone; empty %s and have the member replaced", name, dir)
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

// found notes whom the cluster is founded with, before it is.
func (c *cards) found(seats []string) error {
	c.mu.Lock()
	c.mem.Founders = seats
	c.mu.Unlock()
	return c.publish(func(own *card) { own.Founders = seats })
}

// joined notes that there is a log from now on.
func (c *cards) joined() error {
	c.mu.Lock()
	was := c.mem.Member
	c.mem.Member = true
	if !was { // of the cluster that let it in
		c.mem.Era = c.newestEra()
	}
	era := c.mem.Era
	c.mu.Unlock()
	if was {
		return nil
	}
	return c.publish(func(own *card) { own.Fresh, own.Era = false, era })
}

// save writes the memory; c.mu is held.
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

// all is what there is to tell others.
func (c *cards) all() []card {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Collect(maps.Values(c.mem.Cards))
}

// Limits of what is taken from others.
const (
	maxCards    = 64
	maxCardSize = 8192
	maxAddress  = 300
)

// merge takes what another member told.
func (c *cards) merge(told []card) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	changed := false
	for _, t := range told {
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
		// The clock may have been set back since the name's last disk was written: who
		// begins anew goes on from the number that the others know.
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

// onlySeats tells whose seats there are: what is known of others is dropped and
// not taken again, except from fresh ones: they wait to be let in.
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

// counts tells whether a card is worth keeping; c.mu is held.
func (c *cards) counts(t card) bool {
	return c.seats == nil || t.Fresh || t.Seat == c.mem.Seat || c.seats[t.Seat]
}

// addresses are where a seat may be found, the best first.
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

// everywhere is all addresses but the own one: where others may be asked.
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

// newestEra is the newest of which somebody with data has told; c.mu is held.
func (c *cards) newestEra() (era int64) {
	for _, t := range c.mem.Cards {
		if !t.Fresh {
			era = max(era, t.Era)
		}
	}
	return era
}

// survives tells whether a card is of nobody who was given up for lost, as far as is
// known here.
func (c *cards) survives(t card) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return t.Fresh || t.Era >= c.newestEra()
}

// newest is the newest card of a name, and whether there is one.
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

// fresh are the names of the others under which somebody waits with an empty disk.
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

// forgetFresh makes room by dropping who has waited longest with an empty disk, if
// there is somebody: who is still there tells of himself again. c.mu is held.
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
