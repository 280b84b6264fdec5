package memory_test

import (
	"testing"

	"go.uber.org/goleak"

	"keelson.dev/services/apiserver/internal/store"
	"keelson.dev/services/apiserver/internal/store/memory"
	"keelson.dev/services/apiserver/internal/store/storetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestConformance(t *testing.T) {
	storetest.Run(t, func(t *testing.T) store.Store {
		s := memory.New()
		t.Cleanup(s.Close)
		return s
	})
}
