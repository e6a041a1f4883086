package lvs_test

import (
	"testing"

	"github.com/sisod/sisod/internal/golden"
)

func TestRolesAndPlansAreAsWritten(t *testing.T) { golden.Written(t, "testdata") }
