package snapshot

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"keelson.dev/services/apiserver/internal/resource"
	"keelson.dev/services/apiserver/internal/store"
	"keelson.dev/services/apiserver/internal/store/etcd"
	"keelson.dev/services/apiserver/internal/store/raft"
)

// RestoreConfig describes a restore.
type RestoreConfig struct {
	// File is the snapshot.
	File string
	// Members are the names of all apiservers of the new cluster.
	Members []string
	// Dirs are the data directories to create, by member. Those on other machines are created
	// there, with the same File, Members and Token.
	Dirs map[string]string
	// Token identifies the new cluster. It must be new, and the same on all machines. It may be
	// empty if Dirs has a directory for each member.
	Token string
	// SetAside moves existing data to before-restore-TIME in its directory. Without it,
	// existing data is an error.
	SetAside bool
	// Table lists the served kinds.
	Table *resource.Table
	// Log receives the log of etcd and raft. Default: slog.Default().
	Log *slog.Logger

	// stop, if set, is called between steps. An error simulates the end of the process. For
	// tests.
	stop func(step string) error
}

// Restored is the result of a restore.
type Restored struct {
	Token        string   `json:"token"`
	Members      []string `json:"members"`
	Objects      int      `json:"objects"`
	EtcdRevision int64    `json:"etcdRevision"`
	RaftRevision int64    `json:"raftRevision"`
	// Moved counts the objects of transient kinds that were in etcd.
	Moved []Count `json:"moved,omitempty"`
	// NotServed counts the objects that were restored although their kind is not served.
	NotServed []Count `json:"notServed,omitempty"`
	// Dropped is the number of keys that were left out because they have no meaning after a
	// restore.
	Dropped int `json:"droppedKeys"`
	// SetAside is the directory with the old data, by member. Already lists the members that
	// had been restored with this token before and were not changed.
	SetAside map[string]string `json:"setAside,omitempty"`
	Already  []string          `json:"already,omitempty"`
	// Notes are those of Status.
	Notes []string      `json:"notes,omitempty"`
	Took  time.Duration `json:"tookNanoseconds"`
}

// Restore creates the data directories of a new cluster from a snapshot. The package comment
// describes its steps.
func Restore(ctx context.Context, cfg RestoreConfig) (_ *Restored, err error) {
	began := time.Now()
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	if cfg.stop == nil {
		cfg.stop = func(string) error { return nil }
	}
	r := &restore{RestoreConfig: cfg, out: &Restored{SetAside: map[string]string{}}}
	defer r.unlock()
	if err := r.begin(); err != nil {
		return nil, err
	}
	work := r.targets[0].at(workDir)
	if err := os.RemoveAll(work); err != nil {
		return nil, err
	}
	if err := os.Mkdir(work, 0o700); err != nil {
		return nil, err
	}
	defer func() {
		if !errors.Is(err, errStopped) {
			err = errors.Join(err, os.RemoveAll(work))
		}
	}()
	if err := r.run(ctx, work); err != nil {
		return nil, err
	}
	r.out.Token, r.out.Members, r.out.Took = r.plan.Token, r.plan.Members, time.Since(began)
	return r.out, nil
}

// errStopped simulates the end of the process in tests.
var errStopped = errors.New("stopped")

// restore is the state of one call of Restore.
type restore struct {
	RestoreConfig
	targets []*target
	locks   []func()
	plan    plan
	out     *Restored
	source  *source
}

func (r *restore) unlock() {
	for _, unlock := range r.locks {
		unlock()
	}
}

// begin checks the configuration, then creates and locks the directories.
func (r *restore) begin() error {
	members := slices.Clone(r.Members)
	slices.Sort(members)
	if len(members) == 0 || len(slices.Compact(slices.Clone(members))) != len(members) {
		return fmt.Errorf("members %v: expected at least one name, and no name twice", members)
	}
	if len(r.Dirs) == 0 {
		return errors.New("no data directory to restore to")
	}
	if r.Token == "" && len(r.Dirs) != len(members) {
		return errors.New("a token is required unless the directories of all members are given: choose a new one, the same for all members")
	}
	if err := checkToken(r.Token); err != nil {
		return err
	}
	for _, name := range members {
		dir, ok := r.Dirs[name]
		if !ok {
			continue
		}
		dir, err := filepath.Abs(dir)
		if err != nil {
			return err
		}
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
		t := &target{name: name, dir: dir}
		unlock, err := t.lock()
		if err != nil {
			return err
		}
		r.locks = append(r.locks, unlock)
		r.targets = append(r.targets, t)
	}
	if len(r.targets) != len(r.Dirs) {
		return fmt.Errorf("there are data directories for %v, but the members are %v", keys(r.Dirs), members)
	}
	r.plan = plan{Token: r.Token, Members: members, Began: time.Now().UTC()}
	return nil
}

func keys(m map[string]string) (out []string) {
	for k := range m {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}

func (r *restore) run(ctx context.Context, work string) error {
	var err error
	if r.source, err = open(r.File, work); err != nil {
		return err
	}
	if r.plan.File, err = filepath.Abs(r.File); err != nil {
		return err
	}
	r.plan.Sum = r.source.sum
	ready, err := r.resume()
	if err != nil {
		return err
	}
	c, err := examine(r.source, newCatalogue(r.Table))
	if err != nil {
		return fmt.Errorf("%s: %w", r.File, err)
	}
	defer func() { _ = c.close() }() // read only
	if err := c.restorable(r.File); err != nil {
		return err
	}
	r.out.Notes = c.notes()
	made := filepath.Join(work, "made.db")
	quick, err := r.transform(c, made)
	if err != nil {
		return err
	}
	if !ready {
		if err := r.prepare(ctx, made, quick); err != nil {
			if !errors.Is(err, errStopped) {
				err = errors.Join(err, r.giveUp())
			}
			return err
		}
	}
	for _, t := range r.targets {
		if t.done {
			r.out.Already = append(r.out.Already, t.name)
			if err := os.RemoveAll(t.at(leftDir)); err != nil {
				return err
			}
			continue
		}
		if err := r.stop("swap " + t.name); err != nil {
			return err
		}
		before, err := t.swap(r.plan, func(step string) error { return r.stop(step + " of " + t.name) })
		if err != nil {
			return fmt.Errorf("%s: %w; repeat the restore", t.dir, err)
		}
		if before != "" {
			r.out.SetAside[t.name] = before
		}
	}
	return nil
}

// resume looks for what an interrupted restore left. If that was a restore of the same file for
// the same members, resume adopts its token. ready reports whether all new data has been
// prepared.
func (r *restore) resume() (ready bool, err error) {
	var left, done []*plan
	for _, t := range r.targets {
		for from, list := range map[string]*[]*plan{t.at(restoringDir, planFile): &left, t.at(doneFile): &done} {
			p, err := readPlan(from)
			if err != nil {
				return false, err
			}
			*list = append(*list, p)
		}
	}
	for _, t := range r.targets { // interrupted while cleaning up
		p, err := readPlan(t.at(leftDir, planFile))
		if err != nil {
			return false, err
		}
		left = append(left, p)
	}
	for _, p := range left {
		if p == nil {
			continue
		}
		if mine := (&plan{Token: p.Token, Sum: r.plan.Sum, Members: r.plan.Members}); p.same(mine) && (r.Token == "" || r.Token == p.Token) {
			r.plan.Token = p.Token
		}
	}
	if r.plan.Token == "" {
		r.plan.Token = newToken()
	}
	ready = true
	for i, t := range r.targets {
		interrupted := left[i] != nil && left[i].same(&r.plan)
		switch {
		case !interrupted && done[i] != nil && done[i].same(&r.plan):
			t.done = true
		case interrupted && left[i].Ready:
			r.plan.Began = left[i].Began
		case done[i] != nil && done[i].Token == r.plan.Token:
			return false, fmt.Errorf("%s was restored with the token %s from another file or for other members: use a new token", t.dir, r.plan.Token)
		default:
			ready = false
			if left[i] != nil && left[i].Ready && !interrupted {
				return false, fmt.Errorf("%s: a restore of %s for %s was interrupted while it replaced the data: repeat that one first, then this one",
					t.dir, left[i].File, strings.Join(left[i].Members, ", "))
			}
			if t.used() && !r.SetAside {
				return false, fmt.Errorf("%s contains data: use --set-aside to move it to %s, or choose another directory", t.dir, t.at(beforePrefix+"TIME"))
			}
		}
	}
	return ready, nil
}

// transform creates the contents of the new stores: etcd's in the file made, the transient
// store's in memory.
func (r *restore) transform(c *contents, made string) (*raft.Saved, error) {
	kinds := newCatalogue(r.Table)
	rev := after(c.etcd.Revision(), r.plan.Token)
	quick := c.raft
	if quick == nil {
		quick = raft.NewSaved(c.etcd.Revision())
	}
	note, err := json.Marshal(r.plan)
	if err != nil {
		return nil, err
	}
	moved, spare := map[string]*Count{}, c.etcd.Revision()
	var moves []etcd.FileEntry
	var fences []string
	taken := map[store.Revision]bool{}
	err = c.etcd.Rewrite(made, rev, restoredKey, note, func(e etcd.FileEntry) (bool, error) {
		switch k := kinds.kind(e.Key); {
		case strings.HasPrefix(e.Key, etcd.WriterPrefix), strings.HasPrefix(e.Key, joinPrefix), e.Key == changeKey:
			r.out.Dropped++
			return false, nil
		case strings.HasPrefix(e.Key, fencePrefix):
			r.out.Dropped++
			fences = append(fences, e.Key)
			return false, nil
		case k != nil && k.Transient:
			if c.raft != nil {
				return false, fmt.Errorf("%s is in etcd, although the snapshot has a transient store", e.Key)
			}
			n := moved[resourceName(k)]
			if n == nil {
				n = &Count{Resource: resourceName(k), Served: true, Store: "raft"}
				moved[n.Resource] = n
			}
			n.Objects++
			n.Bytes += int64(len(e.Value))
			e.Value = slices.Clone(e.Value)
			moves = append(moves, e)
			return false, nil
		}
		return true, nil
	})
	if err != nil {
		return nil, fmt.Errorf("make etcd's data: %w", err)
	}
	// In the transient store each revision has one key. If several moved keys share a revision,
	// give all but one a revision of their own.
	for _, e := range moves {
		if taken[e.ModRevision] {
			spare++
			e.ModRevision = spare
		}
		taken[e.ModRevision] = true
	}
	quick.Jump(after(quick.Revision(), r.plan.Token) - quick.Revision())
	for _, e := range moves {
		if err := quick.Add(e.Entry, kinds.kind(e.Key).TTLSeconds); err != nil {
			return nil, err
		}
	}
	quick.EndEpochs(rev, fences...)
	for _, n := range moved {
		r.out.Moved = append(r.out.Moved, *n)
	}
	slices.SortFunc(r.out.Moved, func(a, b Count) int { return strings.Compare(a.Resource, b.Resource) })
	for _, n := range c.counts {
		r.out.Objects += n.Objects
		if !n.Served {
			r.out.NotServed = append(r.out.NotServed, n)
		}
	}
	r.out.EtcdRevision, r.out.RaftRevision = int64(rev), int64(quick.Revision())
	return quick, nil
}

// logBytes is about the size of the logs of a new member.
const logBytes = 80 << 20

// prepare creates the new data next to the old in all directories, then marks the plans ready.
func (r *restore) prepare(ctx context.Context, made string, quick *raft.Saved) error {
	st, err := os.Stat(made)
	if err != nil {
		return err
	}
	for _, t := range r.targets {
		if t.done {
			continue
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := enough(t.dir, st.Size()+logBytes); err != nil {
			return err
		}
		if err := t.prepare(r.plan); err != nil {
			return err
		}
		if err := r.stop("prepare " + t.name); err != nil {
			return err
		}
		err := etcd.Restore(etcd.RestoreConfig{
			Name: t.name, Members: r.plan.Members, Token: r.plan.Token, From: made, Dir: t.at(restoringDir, etcdDir), Log: r.Log,
		})
		if err != nil {
			return err
		}
		err = quick.Restore(raft.RestoreConfig{
			Name: t.name, Members: r.plan.Members, Token: r.plan.Token, Dir: t.at(restoringDir, raftDir), Log: r.Log,
		})
		if err != nil {
			return err
		}
		if err := t.sync(); err != nil {
			return err
		}
		if err := r.stop("prepared " + t.name); err != nil {
			return err
		}
	}
	r.plan.Ready = true
	for _, t := range r.targets {
		if t.done {
			continue
		}
		p := r.plan
		p.Name = t.name
		if err := p.write(t.at(restoringDir, planFile)); err != nil {
			return err
		}
		if err := r.stop("ready " + t.name); err != nil {
			return err
		}
	}
	return nil
}

// giveUp removes what prepare created, so that the directories are as they were.
func (r *restore) giveUp() error {
	var errs []error
	for _, t := range r.targets {
		if !t.done {
			errs = append(errs, os.RemoveAll(t.at(restoringDir)))
		}
	}
	return errors.Join(errs...)
}

// Print writes the result as text.
func (r *Restored) Print(to io.Writer) error {
	fmt.Fprintf(to, "restored %d objects for %s in %s; revisions continue from %d (etcd) and %d (raft)\n",
		r.Objects, strings.Join(r.Members, ", "), r.Took.Round(time.Millisecond), r.EtcdRevision, r.RaftRevision)
	for _, name := range r.Already {
		fmt.Fprintf(to, "%s was already restored with this token and is unchanged\n", name)
	}
	for _, name := range keys(r.SetAside) {
		fmt.Fprintf(to, "the previous data of %s is in %s\n", name, r.SetAside[name])
	}
	for _, note := range r.Notes {
		fmt.Fprintf(to, "note: %s\n", note)
	}
	w := tabwriter.NewWriter(to, 0, 4, 2, ' ', 0)
	for _, n := range r.Moved {
		fmt.Fprintf(w, "moved to the raft store:\t%s\t%d\n", n.Resource, n.Objects)
	}
	for _, n := range r.NotServed {
		fmt.Fprintf(w, "restored, but not served:\t%s\t%d\n", n.Resource, n.Objects)
	}
	return w.Flush()
}
