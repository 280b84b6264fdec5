package etcd

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.uber.org/zap"

	"go.etcd.io/etcd/etcdutl/v3/snapshot"
)

// RestoreConfig describes the member whose data to create.
type RestoreConfig struct {
	// Name is the name of the member, and Members those of all members, including this one.
	// With the same Members, Token and file, each call creates one member of the same new
	// cluster.
	Name    string
	Members []string
	// Token is new for each cluster. The disks, seats and ids of all its members are derived
	// from it: members with another token belong to another cluster. If it starts with seconds
	// since 1970, members of earlier clusters that learn of this one stop.
	Token string
	// From is the file with which all members start (File.Rewrite).
	From string
	// Dir is the member's new directory. It must be empty or not exist.
	Dir string
	// Log defaults to slog.Default().
	Log *slog.Logger
}

// Restore creates the data of a member of a new cluster.
func Restore(c RestoreConfig) error {
	if c.Log == nil {
		c.Log = slog.Default()
	}
	if c.Token == "" || !slices.Contains(c.Members, c.Name) {
		return fmt.Errorf("restore etcd's member %q of %v: a token is required, and the members must include the member itself", c.Name, c.Members)
	}
	members := slices.Clone(c.Members)
	slices.Sort(members)
	var initial []string
	for _, name := range members {
		if !memberName.MatchString(name) {
			return fmt.Errorf("restore etcd's members: %q is not a valid name", name)
		}
		initial = append(initial, name+"="+urlPrefix+restoredSeat(name, c.Token))
	}
	seat := restoredSeat(c.Name, c.Token)
	err := snapshot.NewV3(zap.New(slogCore{log: c.Log})).Restore(snapshot.RestoreConfig{
		SnapshotPath: c.From, SkipHashCheck: true, Name: c.Name, OutputDataDir: c.Dir,
		PeerURLs: []string{urlPrefix + seat}, InitialCluster: strings.Join(initial, ","), InitialClusterToken: c.Token,
	})
	if err != nil {
		return fmt.Errorf("restore etcd's member %s: %w", c.Name, err)
	}
	m := cards{path: filepath.Join(c.Dir, memoryFile), mem: memory{Seat: seat, Member: true, Era: EraOf(c.Token)}}
	if err := m.save(); err != nil {
		return fmt.Errorf("restore etcd's member %s: %w", c.Name, err)
	}
	return nil
}

// restoredSeat returns the seat of a member of a restored cluster.
func restoredSeat(name, token string) string {
	sum := sha256.Sum256([]byte("keelson etcd disk\x00" + token + "\x00" + name))
	return seatOf(name, hex.EncodeToString(sum[:4]))
}

// EraOf returns the era of a restored cluster, in nanoseconds since 1970, the same for all its
// members: the time with which its token starts. If it starts with none, EraOf returns 0, which
// is before all others.
func EraOf(token string) int64 {
	digits := len(token) - len(strings.TrimLeft(token, "0123456789"))
	seconds, err := strconv.ParseInt(token[:digits], 10, 64)
	if err != nil || digits != 10 { // 10 digits last from 2001 to 2286
		return 0
	}
	return time.Unix(seconds, 0).UnixNano()
}
