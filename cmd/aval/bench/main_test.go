// This file holds the frame of the package's tests.

package bench

import (
	"os"
	"testing"

	"github.com/aval-id/aval/cmd/aval/avaltest"
)

func TestMain(m *testing.M) { os.Exit(avaltest.Tests{M: m}.Run()) }
