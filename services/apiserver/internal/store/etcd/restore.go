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

// RestoreConfig says which member's data to make.
type RestoreConfig struct {
	// Name of the member, and those of all members, this one among them. With the
	// same Members, Token and file, each gets its part of the same new cluster.
	Name    string
	Members []string
	// Token is new for each cluster. All its members' disks, seats and ids come
	// from it: what has another belongs to another cluster. Where it begins with
	// seconds since 1970, members of earlier clusters that hear of this one end.
	Token string
	// From is the file that all members begin with (File.Rewrite).
	From string
	// Dir is the member's new directory; it must not exist or be empty.
	Dir string
	Log *slog.Logger
}

// Restore makes the data of a member of a new cluster.
func Restore(c RestoreConfig) error {
	if c.Log == nil {
		c.Log = slog.Default()
	}
	if c.Token == "" || !slices.Contains(c.Members, c.Name) {
		return fmt.Errorf("restore etcd's member %q of %v: a token and the member's own name are needed", c.Name, c.Members)
	}
	members := slices.Clone(c.Members)
	slices.Sort(members)
	var initial []string
	for _, name := range members {
		if !memberName.MatchString(name) {
			return fmt.Errorf("restore etcd's members: %q is no name for one", name)
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

// restoredSeat is the seat of a member of a restored cluster.
func restoredSeat(name, token string) string {
	sum := sha256.Sum256([]byte("keelson etcd disk\x00" + token + "\x00" + name))
	return seatOf(name, hex.EncodeToString(sum[:4]))
}

// EraOf is the era of a restored cluster, the same for all its members: the time that
// its token begins with; 0, which is before all others, if it begins with none.
func EraOf(token string) int64 {
	digits := len(token) - len(strings.TrimLeft(token, "0123456789"))
	seconds, err := strconv.ParseInt(token[:digits], 10, 64)
	if err != nil || digits != 10 { // from 2001 to 2286
		return 0
	}
	return time.Unix(seconds, 0).UnixNano()
}
