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
	// refreshEvery is how often an apiserver that is no member asks where they are.
	refreshEvery = 5 * time.Second
	// inviteTime bounds the attempt to ask those that the flags name.
	inviteTime = 5 * time.Second
)

// Directory is where the members are, as an apiserver knows it that is none: a file,
// which is written whole or not at all, and members who are asked now and then.
type Directory struct {
	path   string
	invite Invitation

	mu      sync.Mutex
	members map[string]string                   // by name, where their services are
	conns   map[string]grpc.ClientConnInterface // of Run alone
}

// directoryFile is what is on disk.
type directoryFile struct {
	Members map[string]string `json:"members"`
}

// OpenDirectory reads the file at path, or else asks those who are named in the
// invitation, until one answers.
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
		return nil, errors.New("those who were asked to join know no member: are they members themselves?")
	}
	return d, d.take(found)
}

// take notes where the members are.
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
		return fmt.Errorf("note where the members are: %w", err)
	}
	d.members = next
	return nil
}

// Names are those of the members, sorted.
func (d *Directory) Names() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Sorted(maps.Keys(d.members))
}

// Known is what a Book follows.
func (d *Directory) Known() (out []etcd.Known) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for name, address := range d.members {
		out = append(out, etcd.Known{Name: name, Service: address})
	}
	return out
}

// Run keeps the directory up to date until ctx ends. dial makes a connection to a
// member.
func (d *Directory) Run(ctx context.Context, dial func(name string) (grpc.ClientConnInterface, error)) error {
	defer closeAll(d.conns)
	tick := time.NewTicker(refreshEvery)
	defer tick.Stop()
	for {
		if err := d.refresh(ctx, dial); err != nil && ctx.Err() == nil {
			slog.WarnContext(ctx, "cannot keep up with where the members are", "error", err)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// refresh asks one member after the other, and those that the flags name if none
// answers: all may have moved.
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
