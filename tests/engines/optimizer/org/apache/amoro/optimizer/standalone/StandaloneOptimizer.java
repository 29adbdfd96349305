package org.apache.amoro.optimizer.standalone;

import org.apache.amoro.optimizer.common.Optimizer;

/** An optimizer that is a process; its job id is the process id. */
public final class StandaloneOptimizer {
  private StandaloneOptimizer() {}

  public static void main(String[] arguments) throws InterruptedException {
    Optimizer optimizer = new Optimizer(arguments);
    Runtime.getRuntime().addShutdownHook(new Thread(optimizer::drain));
    optimizer.run(Long.toString(ProcessHandle.current().pid()));
  }
}
