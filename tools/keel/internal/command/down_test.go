package command

import "testing"

// Deleting a cluster by its id unmounts nothing in a directory that has become another
// cluster's.
func TestDeleteByIDSparesOthers(t *testing.T) {
	other := home(t, "00000b", nil)
	r := &removal{id: "00000a"}
	if r.at(other.Home); r.home != "" || r.c != nil {
		t.Errorf("the home of another cluster is taken: %q, %v", r.home, r.c)
	}
	own := home(t, "00000a", nil)
	if r.at(own.Home); r.home != own.Home || r.c == nil {
		t.Errorf("the cluster's own home is not found: %q, %v", r.home, r.c)
	}
	gone := t.TempDir() // without a description
	r = &removal{id: "00000a"}
	if r.at(gone); r.home != gone || r.c != nil {
		t.Errorf("mounts in a home that is gone stay: %q, %v", r.home, r.c)
	}
}
