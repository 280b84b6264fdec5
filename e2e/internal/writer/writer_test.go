package writer

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"keelson.dev/proto/client/clienttest"
)

func TestWriterRemembersWhatWasAcknowledged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		var w Writer
		began, n := time.Now(), 0
		w.Run(ctx, "w", func(name string) error {
			<-time.After(time.Second)
			switch n++; {
			case n == 3 || n == 4:
				return errors.New("refused")
			case n == 6:
				cancel()
			}
			return nil
		})
		if got := strings.Join(w.Names(), " "); got != "w-0 w-1 w-4 w-5" || w.Count() != 4 {
			t.Errorf("acknowledged: %s", got)
		}
		if first, late := w.Gap(began), w.Gap(began.Add(5*time.Second)); first != 3*time.Second || late != time.Second {
			t.Errorf("the gaps are %s and %s, want 3s and 1s", first, late)
		}
		if err := w.Reaches(4)(ctx); err != nil {
			t.Error(err)
		}
		if err := w.Reaches(5)(ctx); err == nil || !strings.Contains(err.Error(), "4 of 5") || !strings.Contains(err.Error(), "refused") {
			t.Errorf("the fifth write: %v", err)
		}
	})
}

func TestLost(t *testing.T) {
	_, api := clienttest.StartServer(t)
	if err := ConfigMap(t.Context(), api, "there"); err != nil {
		t.Fatal(err)
	}
	lost, err := Lost(t.Context(), api, "gone", "there", "never")
	if err != nil || !slices.Equal(lost, []string{"gone", "never"}) {
		t.Errorf("lost %v, %v", lost, err)
	}
}
