package org.apache.amoro.optimizer.standalone;

import org.apache.amoro.optimizer.common.Optimizer;

/** An optimizer that is a process; its job id is the process id. */
public final class StandaloneOptimizer {
  private StandaloneOptimizer() {}

  public static void main(String[] arguments) throws InterruptedException {
    new Optimizer(arguments).run(Long.toString(ProcessHandle.current().pid()));
  }
}
