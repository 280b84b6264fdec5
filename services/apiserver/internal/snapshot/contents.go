package snapshot

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"keelson.dev/services/apiserver/internal/envelope"
	"keelson.dev/services/apiserver/internal/resource"
	"keelson.dev/services/apiserver/internal/store"
	"keelson.dev/services/apiserver/internal/store/etcd"
	"keelson.dev/services/apiserver/internal/store/raft"
	"keelson.dev/services/apiserver/internal/watchcache"
)

// Prefixes of keys in etcd.
const (
	objectPrefix = "/registry/"
	// fencePrefix is the prefix of the epochs of elected leaders.
	fencePrefix = "/keelson/fence/"
	// joinPrefix is the prefix of admissions of members; changeKey is held during a change of
	// the membership. Neither is restored: the new cluster has admitted no one.
	joinPrefix = "/keelson/join/"
	changeKey  = "/keelson/change"
	// restoredKey records the plan from which a store was restored.
	restoredKey = "/keelson/restored"
)

// encryptedPrefix is the prefix of values that Kubernetes encrypted at rest.
const encryptedPrefix = "k8s:enc:"

// Count is the number and size of the objects of a resource.
type Count struct {
	// Resource is for example "pods" or "deployments.apps". For resources that are not served,
	// it is derived from the keys (see group).
	Resource string `json:"resource"`
	Objects  int    `json:"objects"`
	Bytes    int64  `json:"bytes"`
	// Served reports whether this version of Keelson serves the resource or keeps Services'
	// addresses and ports in it.
	Served bool `json:"served"`
	// Store is the part of the snapshot that holds the objects: etcd or raft.
	Store string `json:"store"`
}

// contents is what a snapshot contains.
type contents struct {
	etcd *etcd.File
	// raft is nil if the snapshot has no such part.
	raft   *raft.Saved
	counts []Count
	// others counts keys outside objectPrefix.
	others int
	// encrypted maps resources with encrypted objects to the encryption provider.
	encrypted map[string]string
	// otherVersions maps resources that are stored in another version than the served one to
	// that version.
	otherVersions map[string]string
	// unreadable holds the errors of objects that cannot be decoded, at most maxUnreadable.
	unreadable []error
}

// catalogue maps key prefixes to kinds.
type catalogue map[string]*resource.Kind

func newCatalogue(table *resource.Table) catalogue {
	c := catalogue{}
	for _, k := range table.Kinds() {
		if !k.Virtual() && k.StoredAs == nil {
			c[k.StorePrefix] = k
		}
	}
	return c
}

// kind returns the kind of a key, or nil if it is not served. The longest matching prefix
// decides.
func (c catalogue) kind(key string) *resource.Kind {
	for i := strings.LastIndexByte(key, '/'); i > 0; i = strings.LastIndexByte(key[:i], '/') {
		if k := c[key[:i+1]]; k != nil {
			return k
		}
	}
	return nil
}

// group returns the resource name under which a key of no served kind is counted. Kubernetes
// stores custom resources as /registry/GROUP/RESOURCE/….
func group(key string) string {
	first, rest, _ := strings.Cut(strings.TrimPrefix(key, objectPrefix), "/")
	second, _, _ := strings.Cut(rest, "/")
	if strings.Contains(first, ".") && second != "" {
		return second + "." + first
	}
	return first
}

func resourceName(k *resource.Kind) string {
	if k.GVK.Group == "" {
		return k.Resource
	}
	return k.Resource + "." + k.GVK.Group
}

// examine opens the parts and decodes every object of a served kind.
func examine(s *source, kinds catalogue) (_ *contents, err error) {
	c := &contents{encrypted: map[string]string{}, otherVersions: map[string]string{}}
	if s.raft != "" {
		f, err := os.Open(s.raft)
		if err != nil {
			return nil, err
		}
		c.raft, err = raft.ReadSaved(f)
		if err := errors.Join(err, f.Close()); err != nil {
			return nil, fmt.Errorf("%w: %s: %w", ErrFile, raftFile, err)
		}
	}
	if c.etcd, err = etcd.OpenFile(s.etcd); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrFile, err)
	}
	defer func() {
		if err != nil {
			_ = c.close()
		}
	}()
	counts := map[string]*Count{}
	err = c.etcd.Each(func(e etcd.FileEntry) error {
		c.look(kinds, counts, e.Entry, "etcd")
		return nil
	})
	if err == nil && c.raft != nil {
		err = c.raft.Each(func(e store.Entry) error {
			c.look(kinds, counts, e, "raft")
			return nil
		})
	}
	if err != nil {
		return nil, err
	}
	for _, n := range counts {
		c.counts = append(c.counts, *n)
	}
	slices.SortFunc(c.counts, func(a, b Count) int {
		if d := strings.Compare(a.Resource, b.Resource); d != 0 {
			return d
		}
		return strings.Compare(a.Store, b.Store)
	})
	return c, nil
}

func (c *contents) close() error { return c.etcd.Close() }

// look counts an entry, and decodes it if its kind is served.
func (c *contents) look(kinds catalogue, counts map[string]*Count, e store.Entry, from string) {
	if !strings.HasPrefix(e.Key, objectPrefix) {
		c.others++
		return
	}
	k := kinds.kind(e.Key)
	name := group(e.Key)
	served := name == "ranges" || name == "ipaddresses" // they hold the Services' addresses and ports
	if k != nil {
		name, served = resourceName(k), true
	}
	n := counts[name+" "+from]
	if n == nil {
		n = &Count{Resource: name, Served: served, Store: from}
		counts[name+" "+from] = n
	}
	n.Objects++
	n.Bytes += int64(len(e.Value))
	if how, ok := bytes.CutPrefix(e.Value, []byte(encryptedPrefix)); ok {
		provider, _, _ := bytes.Cut(how, []byte(":"))
		c.encrypted[name] = string(provider[:min(len(provider), 32)])
		return
	}
	if k == nil {
		return
	}
	if _, err := watchcache.Decode(k, e); err != nil {
		if len(c.unreadable) < maxUnreadable {
			c.unreadable = append(c.unreadable, err)
		}
		return
	}
	if v, err := envelope.Decode(e.Value); err == nil && !v.JSON && v.APIVersion != k.GVK.GroupVersion().String() {
		c.otherVersions[name] = v.APIVersion
	}
}

// maxUnreadable bounds the number of objects that an error names.
const maxUnreadable = 5

// restorable returns an error if no cluster can be restored from the contents.
func (c *contents) restorable(path string) error {
	if len(c.encrypted) > 0 {
		var names []string
		for name, how := range c.encrypted {
			names = append(names, fmt.Sprintf("%s (%s)", name, how))
		}
		slices.Sort(names)
		return unusable(path, "objects are encrypted at rest: %s. Only the original cluster has the key: make `identity` the first provider for these resources in its EncryptionConfiguration, rewrite them (`kubectl get RESOURCE -A -o json | kubectl replace -f -`), and take the snapshot again",
			strings.Join(names, ", "))
	}
	if len(c.unreadable) > 0 {
		return fmt.Errorf("%w; nothing was restored", unusable(path, "objects that cannot be decoded: %v", errors.Join(c.unreadable...)))
	}
	for _, n := range c.counts {
		if n.Objects > 0 {
			return nil
		}
	}
	return unusable(path, "it contains no objects under %s: check that it is of a Kubernetes cluster with the default --etcd-prefix", objectPrefix)
}
