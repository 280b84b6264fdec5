package command

import "testing"

// Deleting a cluster by id must not unmount anything in a directory that another cluster uses
// now.
func TestDeleteByIDSparesOthers(t *testing.T) {
	other := home(t, "00000b", nil)
	r := &removal{id: "00000a"}
	if r.at(other.Home); r.home != "" || r.c != nil {
		t.Errorf("the home of another cluster is used: %q, %v", r.home, r.c)
	}
	own := home(t, "00000a", nil)
	if r.at(own.Home); r.home != own.Home || r.c == nil {
		t.Errorf("the cluster's own home is not used: %q, %v", r.home, r.c)
	}
	gone := t.TempDir() // without a description
	r = &removal{id: "00000a"}
	if r.at(gone); r.home != gone || r.c != nil {
		t.Errorf("a home without a description is not used: %q, %v", r.home, r.c)
	}
}
