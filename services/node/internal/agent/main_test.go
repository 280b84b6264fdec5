package agent

import (
	"os"
	"testing"

	"keelson.dev/services/node/internal/runtimetest"
)

func TestMain(m *testing.M) { os.Exit(runtimetest.Main(m)) }
