package member

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"

	memberv1 "keelson.dev/proto/keelson/member/v1"
	"keelson.dev/services/apiserver/internal/store/etcd"
)

const (
	// refreshEvery is how often an apiserver without stores asks the members for their
	// addresses.
	refreshEvery = 5 * time.Second
	// inviteTime bounds one request to the apiservers that the flags name.
	inviteTime = 5 * time.Second
)

// Directory holds the members' addresses for an apiserver that is not a member
// (--member=false). It is saved in a file, which is replaced atomically, and refreshed from the
// members.
type Directory struct {
	path   string
	invite Invitation

	mu      sync.Mutex
	members map[string]string                   // service addresses by name
	conns   map[string]grpc.ClientConnInterface // used by Run only
}

// directoryFile is the content of the file.
type directoryFile struct {
	Members map[string]string `json:"members"`
}

// OpenDirectory reads the file at path. If it names no member, it asks the apiservers of the
// invitation until one answers.
func OpenDirectory(ctx context.Context, path string, v Invitation) (*Directory, error) {
	d := &Directory{path: path, invite: v, conns: map[string]grpc.ClientConnInterface{}}
	data, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, err
	default:
		var file directoryFile
		if err := json.Unmarshal(data, &file); err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		d.members = file.Members
	}
	if len(d.members) > 0 {
		return d, nil
	}
	found, err := v.Ask(ctx, &memberv1.JoinRequest{Client: true})
	if err != nil {
		return nil, err
	}
	if len(found) == 0 {
		return nil, errors.New("the apiservers that were asked to join know of no members: check that they are members themselves")
	}
	return d, d.take(found)
}

// take replaces the directory by found, in memory and on disk. It keeps the previous one if
// found contains no address.
func (d *Directory) take(found []*memberv1.Member) error {
	next := map[string]string{}
	for _, m := range found {
		if m.Name != "" && m.PeerAddress != "" {
			next[m.Name] = m.PeerAddress
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(next) == 0 || maps.Equal(next, d.members) {
		return nil
	}
	data, err := json.MarshalIndent(directoryFile{Members: next}, "", "  ")
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(d.path), ".members-*") // mode 0600
	if err != nil {
		return err
	}
	_, err = f.Write(append(data, '\n'))
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = os.Rename(f.Name(), d.path)
	}
	if err != nil {
		_ = os.Remove(f.Name())
		return fmt.Errorf("save the members' addresses: %w", err)
	}
	d.members = next
	return nil
}

// Names returns the members' names, sorted.
func (d *Directory) Names() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Sorted(maps.Keys(d.members))
}

// Known returns the members' addresses in the form that Book.Follow takes.
func (d *Directory) Known() (out []etcd.Known) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for name, address := range d.members {
		out = append(out, etcd.Known{Name: name, Service: address})
	}
	return out
}

// Run refreshes the directory every refreshEvery until ctx ends, then returns nil. dial
// connects to a member by name.
func (d *Directory) Run(ctx context.Context, dial func(name string) (grpc.ClientConnInterface, error)) error {
	defer closeAll(d.conns)
	tick := time.NewTicker(refreshEvery)
	defer tick.Stop()
	for {
		if err := d.refresh(ctx, dial); err != nil && ctx.Err() == nil {
			slog.WarnContext(ctx, "cannot refresh the members' addresses", "error", err)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// refresh asks one member after another. If none answers, all may have moved: then it asks the
// apiservers that the flags name.
func (d *Directory) refresh(ctx context.Context, dial func(name string) (grpc.ClientConnInterface, error)) error {
	for _, name := range d.Names() {
		c, ok := d.conns[name]
		if !ok {
			var err error
			if c, err = dial(name); err != nil {
				return err
			}
			d.conns[name] = c
		}
		ask, cancel := context.WithTimeout(ctx, askTime)
		st, err := memberv1.NewPeerServiceClient(c).Status(ask, &memberv1.StatusRequest{})
		cancel()
		if err == nil {
			return d.take(st.Members)
		}
	}
	ask, cancel := context.WithTimeout(ctx, inviteTime)
	defer cancel()
	found, err := d.invite.Ask(ask, &memberv1.JoinRequest{Client: true})
	if err != nil {
		return err
	}
	return d.take(found)
}
